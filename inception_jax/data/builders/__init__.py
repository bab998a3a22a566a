"""TFDS builders of the named data sets. They do not need TensorFlow, and keep the published order of the examples
unless it is sorted by class.

Those of data sets that TFDS has, too, are called `inception_jax_...`, so that neither library takes the other's files
for its own where both keep them in one folder. `EARLIER_NAME` is what such a builder was called before.
"""

from inception_jax.data.builders.cifar10 import Cifar10
from inception_jax.data.builders.cifar100 import Cifar100
from inception_jax.data.builders.digits import Digits
from inception_jax.data.builders.fashion_mnist import FashionMnist
from inception_jax.data.builders.mnist import Mnist
from inception_jax.data.builders.tiny_imagenet import TinyImagenet
from inception_jax.data.builders.uc_merced import UcMerced, UcMercedApart

__all__ = ["Cifar10", "Cifar100", "Digits", "FashionMnist", "Mnist", "TinyImagenet", "UcMerced", "UcMercedApart"]
