"""Loads weights of other libraries into our networks, and exports ours to them."""

from inception_jax.weights.convert import from_state_dict, to_state_dict
from inception_jax.weights.files import read_state_dict, write_state_dict
from inception_jax.weights.names import NAMINGS
from inception_jax.weights.preprocessing import Preprocessing, imagenet_classes
from inception_jax.weights.pretrained import InitialWeights, Pretrained, create_model, find_network, init_from
from inception_jax.weights.published import PRETRAINED

__all__ = [
    "NAMINGS",
    "PRETRAINED",
    "InitialWeights",
    "Preprocessing",
    "Pretrained",
    "create_model",
    "find_network",
    "from_state_dict",
    "imagenet_classes",
    "init_from",
    "read_state_dict",
    "to_state_dict",
    "write_state_dict",
]
