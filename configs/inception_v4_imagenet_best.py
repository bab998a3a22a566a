"""Inception v4 on the whole of ImageNet, for GPUs: CutMix and mixup, RandAugment, a moving average, 200 epochs.

    python -m inception_jax.main --config=configs/inception_v4_imagenet_best.py --config.data.folder=DIR

The aim is more than the 80.14 % (top-5 94.98) of timm's weights on val, the test split here; not run yet. DIR is a full
ILSVRC2012 tree. The best weights are selected on 1 % of the training pictures. Follows torchvision's training recipe of
2021, with the same mixup and CutMix and the same small weight decay.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 256
    config.num_epochs = 200
    config.average_decay = 0.9999

    config.model.name = "inception_v4"

    config.data.name = "imagenet2012"
    config.data.splits.train = "train[:99%]"
    config.data.splits.validation = "train[99%:]"
    config.data.image_size = 299
    config.data.resize = "bicubic"
    config.data.fit = "crop"
    config.data.crop_share = 0.875
    config.data.augment.random_resized_crop = (0.08, 1.0)
    config.data.augment.crop_originals = True
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.randaugment_ops = 2
    config.data.augment.randaugment_magnitude = 9
    config.data.augment.random_erasing = 0.1
    config.data.augment.mixup = 0.2
    config.data.augment.cutmix = 1.0

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 2e-5

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.125
    config.schedule.warmup_epochs = 5.0
    return config
