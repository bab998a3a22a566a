"""GoogLeNet on the whole of ImageNet as its authors trained it, for GPUs (Szegedy et al. 2015, section 6; not run yet).

    python -m inception_jax.main --config=configs/googlenet_imagenet_paper.py --config.data.folder=DIR
    inception-jax evaluate runs/googlenet_imagenet_paper --tta 144-crop

DIR is a full ILSVRC2012 tree; val, 50,000 pictures, is the test split. The paper's top-5 error on it, of one network,
is 10.07 % with 1 crop, 9.15 % with 10 and 7.89 % with 144 crops (table 3).

From the paper: the network with local response norms and both auxiliary heads (weight 0.3), momentum 0.9, a learning
rate that falls by 4 % every 8 epochs, the average of the weights for inference, crops of 8 to 100 % of the area with
aspect ratios from 3/4 to 4/3, photometric distortions, zero mean. The paper does not state the batch size, the initial
rate, the weight decay (the last two are those of Caffe's reproduction), the number of epochs and the strength of the
distortions. Differences: synchronous updates, one interpolation instead of one of four at random, and 1 % of the
training pictures held out to watch.
"""

from inception_jax.config import default_config


def get_config():
    config = default_config()
    config.batch_size = 256
    config.num_epochs = 80
    config.average_decay = 0.9999

    config.model.name = "googlenet"
    config.model.norm = "lrn"
    config.model.aux_heads = True
    config.model.aux_pool = "paper"

    config.data.name = "imagenet2012"
    config.data.splits.train = "train[:99%]"
    config.data.splits.validation = "train[99%:]"
    config.data.image_size = 224
    config.data.fit = "crop"
    config.data.crop_share = 0.875
    config.data.normalization = "mean"
    config.data.augment.random_resized_crop = (0.08, 1.0)
    config.data.augment.aspect_ratio = (3 / 4, 4 / 3)
    config.data.augment.crop_originals = True
    config.data.augment.horizontal_flip = 0.5
    config.data.augment.brightness = 0.4
    config.data.augment.contrast = 0.4
    config.data.augment.saturation = 0.4

    config.loss.aux_weight = 0.3

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4

    config.schedule.name = "step"
    config.schedule.learning_rate = 0.01
    config.schedule.every_epochs = 8.0
    config.schedule.factor = 0.96
    return config
