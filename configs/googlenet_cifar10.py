"""GoogLeNet on CIFAR-10 for two CPU cores: 89.12 % test accuracy, 10.88 % error.

    python -m inception_jax.main --config=configs/googlenet_cifar10.py

Measured on 2 cores of an AMD EPYC (AVX-512), JAX 0.12, float32: 240 to 260 images/s without other load, or 45 minutes.
The measured run took 71 minutes with other programs running, and was stopped and resumed once.
Wyatt's study of deeper networks reports 14.56 % error for GoogLeNet and 13.39 % for its best variant.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 128
    config.num_epochs = 14
    config.compute_dtype = "float32"  # as measured

    config.model.name = "googlenet"
    config.model.norm = "batch"
    config.model.stem = "small_pooled"  # 8x8 maps in the first module, as at 64 pixels with the paper's stem
    config.model.dropout_rate = 0.2

    config.data.name = "cifar10"
    config.data.splits.train = "train[:45000]"
    config.data.splits.validation = "train[45000:]"
    config.data.augment.pad_and_crop = 4
    config.data.augment.horizontal_flip = 0.5

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup_epochs = 1.0
    return config
