"""A sequential network of four stages on CIFAR-10, the baseline that GoogLeNet is compared with (not measured yet).

python -m inception_jax.main --config=configs/simple_cnn_cifar10.py
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 128
    config.num_epochs = 30

    config.model.name = "simple_cnn"
    config.model.norm = "none"
    config.model.dropout_rate = 0.5

    config.data.name = "cifar10"
    config.data.splits.train = "train[:45000]"
    config.data.splits.validation = "train[45000:]"
    config.data.augment.pad_and_crop = 4
    config.data.augment.horizontal_flip = 0.5

    config.optimizer.name = "adam"

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1e-3
    config.schedule.warmup_epochs = 1.0
    return config
