"""GoogLeNet on UC Merced from scratch, for a GPU: 200 epochs, any rotation (aerial pictures have no upright), CutMix.

    python -m inception_jax.main --config=configs/googlenet_uc_merced_best.py

The aim is at least 90 % on test data; slides report 45.05 % from scratch and 70 % pretrained. Not run in full yet.
With --config.data.image_size=128 --config.num_epochs=70, it reaches 86.9 % in an hour on two cores of an Intel Xeon in
float32. Without internet access: --config.data.archives=DIR.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 32
    config.num_epochs = 200
    config.average_decay = 0.999

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.stem = "imagenet"
    config.model.residual = "identity"
    config.model.dropout_rate = 0.2

    config.data.name = "uc_merced"
    config.data.image_size = 224
    config.data.augment.random_resized_crop = (0.35, 1.0)
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.rotation = 180.0
    config.data.augment.cutmix = 0.5

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup_epochs = 5.0
    return config
