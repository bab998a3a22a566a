"""A trained network on your own pictures: a folder with a folder for each class, or train, val and test above them.

    python -m inception_jax.main --config=configs/finetune_folder.py --config.data.folder=DIR --config.init_from=WEIGHTS

WEIGHTS is a run's folder, a .safetensors or .pth file, or published weights such as torchvision:resnet50. The network,
its image size and normalization are those of the weights. The first epoch trains only the new classifier; after it,
the rest is trained at a tenth of its learning rate.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 32
    config.num_epochs = 15

    config.model.name = ""  # the network of the weights

    config.finetune.freeze_epochs = 1.0
    config.finetune.trunk_rate = 0.1

    config.data.name = "image_folder"
    config.data.fit = "crop"
    config.data.crop_share = 0.875
    config.data.augment.crop_originals = True
    config.data.augment.random_resized_crop = (0.35, 1.0)
    config.data.augment.horizontal_flip = 0.5

    config.loss.label_smoothing = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4

    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.02
    config.schedule.warmup_epochs = 1.0
    return config
