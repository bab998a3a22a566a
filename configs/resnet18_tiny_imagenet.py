"""ResNet-18 on Tiny ImageNet, 200 classes of 64x64 pixels, 30 epochs for a GPU (not measured yet).

    python -m inception_jax.main --config=configs/resnet18_tiny_imagenet.py

The recipe is that of googlenet_tiny_imagenet, so that the two networks can be compared. Without internet access:
--config.data.archives=DIR, a folder with tiny-imagenet-200.zip or its contents.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 128
    config.num_epochs = 30

    config.model.name = "resnet18"
    config.model.stem = "small"

    config.data.name = "tiny_imagenet"
    config.data.augment.random_resized_crop = (0.25, 1.0)
    config.data.augment.horizontal_flip = 0.5

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup_epochs = 2.0

    config.loss.label_smoothing = 0.1
    return config
