"""GoogLeNet on ten ImageNet synsets that match CIFAR-10's classes, 30 epochs (Mahmud 2024; not measured yet).

    python -m inception_jax.main --config=configs/googlenet_imagenet_subset.py --config.data.folder=DIR

DIR has a folder for each synset, or is a full ILSVRC2012 tree. The test split is 100 pictures of each class; training
uses 80 % of the others. --config.data.classes="('all',)" uses all synsets in DIR.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 16
    config.num_epochs = 30

    config.model.name = "googlenet"
    config.model.aux_heads = True

    config.data.name = "imagenet_subset"
    config.data.image_size = 224
    config.data.splits.train = "train[:80%]"
    config.data.splits.validation = "train[80%:]"
    config.data.augment.pad_and_crop = 16
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.zoom = 0.2

    config.optimizer.name = "adam"

    config.schedule.name = "constant"
    config.schedule.learning_rate = 1e-4
    return config
