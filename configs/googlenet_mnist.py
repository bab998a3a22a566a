"""GoogLeNet with batch norm on MNIST, two epochs."""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 128
    config.num_epochs = 2

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.stem = "imagenet"

    config.data.name = "mnist"
    config.data.splits.train = "train[:55000]"
    config.data.splits.validation = "train[55000:]"

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup_epochs = 0.2
    return config
