"""GoogLeNet on Tiny ImageNet for a GPU: full resolution, residual modules, CutMix, RandAugment, a moving average.

    python -m inception_jax.main --config=configs/googlenet_tiny_imagenet_best.py

The aim is more than the 55 to 60 % of ResNets in course reports (a PyTorch repository: GoogLeNet 22.6 %, ResNet-18
41.5 %); not run yet. Without internet access: --config.data.archives=DIR.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 128
    config.num_epochs = 100
    config.average_decay = 0.9995

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.stem = "small"
    config.model.residual = "identity"
    config.model.dropout_rate = 0.2

    config.data.name = "tiny_imagenet"
    config.data.augment.random_resized_crop = (0.35, 1.0)
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.randaugment_ops = 2
    config.data.augment.randaugment_magnitude = 7
    config.data.augment.cutmix = 1.0

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup_epochs = 5.0
    return config
