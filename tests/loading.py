"""Data sets by the fields of their options."""

import dataclasses
from typing import Any

from inception_jax import data
from inception_jax.data.dataset import Dataset


def load_data(name: str, **fields: Any) -> Dataset:
    """`data.load` with the fields of Location, Selection and Decoding by name; each is in one of them."""
    options = []
    for kind in (data.Location, data.Selection, data.Decoding):
        own = {field.name for field in dataclasses.fields(kind)} & fields.keys()
        options.append(kind(**{field: fields.pop(field) for field in own}))
    assert not fields
    return data.load(name, *options)
