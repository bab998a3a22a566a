"""TFDS builders of the named data sets. They need no TensorFlow and keep the published order of the examples."""

from inception_jax.data.builders.cifar10 import Cifar10
from inception_jax.data.builders.digits import Digits
from inception_jax.data.builders.mnist import Mnist

__all__ = ["Cifar10", "Digits", "Mnist"]
