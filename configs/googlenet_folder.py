"""GoogLeNet on your own pictures: a folder with a folder for each class, or with train, val and test above them.

    python -m inception_jax.main --config=configs/googlenet_folder.py --config.data.folder=DIR

Training uses random crops of the full-size pictures, and evaluation their center crops. If there is no test split,
10 % of each class are held out, and another 10 % of the rest are for validation.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 32
    config.num_epochs = 30

    config.model.name = "googlenet"
    config.model.norm = "batch"

    config.data.name = "image_folder"
    config.data.image_size = 224
    config.data.fit = "crop"
    config.data.crop_share = 0.875
    config.data.augment.crop_originals = True
    config.data.augment.random_resized_crop = (0.08, 1.0)
    config.data.augment.horizontal_flip = 0.5

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup_epochs = 1.0
    return config
