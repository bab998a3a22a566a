"""The data sets by name, and what a name from outside the package may stand for."""

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax import registry
from inception_jax.data.builders import (
    Cifar10,
    Cifar100,
    Digits,
    FashionMnist,
    Mnist,
    TinyImagenet,
    UcMerced,
    UcMercedApart,
)
from inception_jax.data.folders import Listing, image_folder
from inception_jax.data.imagenet import imagenet2012, imagenet_subset
from inception_jax.errors import UserError

DATASETS: dict[str, type[tfds.core.GeneratorBasedBuilder] | Callable[..., Listing]] = {
    "digits": Digits,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "tiny_imagenet": TinyImagenet,
    "uc_merced": UcMerced,
    "uc_merced_apart": UcMercedApart,
    "image_folder": image_folder,
    "imagenet_subset": imagenet_subset,
    "imagenet2012": imagenet2012,
}


def resolve(name: str) -> Any:
    """The entry of DATASETS, or the object that "module:Name" refers to: a builder, a function or arrays.

    Raises:
      UserError: an unknown name, or a module or an object that does not exist.
    """
    with skip_registration():  # a builder from outside may have the name of one of TFDS's
        return registry.resolve("data set", name, DATASETS)


def call(name: str, source: Callable[..., Any]) -> Any:
    """What a function from outside the package returns.

    Raises:
      UserError: it is not a Python function that can be called without arguments.
    """
    rule = f"data set {name!r} must be a function that can be called without arguments, written in Python"
    if not registry.is_function(source):  # only inspected, not called: it may be anything
        raise UserError(f"{rule}, a TFDS builder, or a dict of arrays")
    try:
        inspect.signature(source).bind()
    except TypeError as error:
        raise UserError(f"{rule}: {error}") from error
    return source()


def is_builder(source: Any) -> TypeGuard[type[tfds.core.DatasetBuilder]]:
    """Whether a resolved data set is a TFDS builder."""
    return isinstance(source, type) and issubclass(source, tfds.core.DatasetBuilder)


def has_pictures(source: Any) -> bool:
    """Whether a resolved data set has encoded pictures, so that `published` knows it, and not arrays."""
    return is_builder(source) or source in (value for value in DATASETS.values() if not is_builder(value))


def is_encoded(name: str) -> bool:
    """Whether a data set has encoded pictures, so that `published` knows it, and not arrays.

    Raises:
      UserError: an unknown name.
    """
    return has_pictures(resolve(name))
