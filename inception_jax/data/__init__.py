"""Data sets: prepared once, checked once, then decoded into memory or while they are read, and cut into splits.

A published data set has a directory of its own, `<directory>/<name>/<version>/`: what TFDS wrote (ArrayRecord files,
read again by `tfds.builder_from_directory`), under `facts/` what is known of each picture, and under `decoded/` one
folder of `.npy` files for each image format that was asked for. Pictures in a user's folder are read in place; their
facts and decoded arrays are kept in `<directory>/folders/<name>-<digest of the path>/`.
"""

import warnings

from inception_jax.data.arrays import from_arrays
from inception_jax.data.items import Items, is_items
from inception_jax.data.listings import changes
from inception_jax.data.load import from_items, load
from inception_jax.data.options import Decoding, Location, Selection
from inception_jax.data.prepare import prepare
from inception_jax.data.published import Published, published
from inception_jax.data.registry import DATASETS, is_encoded

__all__ = [
    "DATASETS",
    "Decoding",
    "Items",
    "Location",
    "Published",
    "Selection",
    "changes",
    "from_arrays",
    "from_items",
    "is_encoded",
    "is_items",
    "load",
    "prepare",
    "published",
]

# In a notebook without ipywidgets, tqdm warns when TFDS imports it. TFDS's bars are only shown on terminals.
warnings.filterwarnings("ignore", "IProgress not found")
