"""GoogLeNet on UC Merced's aerial images, 21 classes, enlarged or reduced to 224 pixels, 60 epochs (not measured yet).

    python -m inception_jax.main --config=configs/googlenet_uc_merced.py

Without internet access: --config.data.archives=DIR, a folder with UCMerced_LandUse.zip or a folder for each class.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 32
    config.num_epochs = 60

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.aux_heads = True

    config.data.name = "uc_merced"
    config.data.image_size = 224
    config.data.augment.random_resized_crop = (0.25, 1.0)
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.rotation = 15.0

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup_epochs = 3.0
    return config
