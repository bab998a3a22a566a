"""Converts state dicts of other libraries to our variables, and back."""

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from inspect import signature
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp

from inception_jax.errors import UserError
from inception_jax.models import MODELS, create_model
from inception_jax.text import listed
from inception_jax.weights.names import NAMINGS, Naming, check_options, formats, naming, nearest_options

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
LISTED = 10  # names listed in an error message
SAME_NETWORK = 0.8  # least share of equal names and shapes at which tensors are recognized as a network's

Path = tuple[str, ...]  # in our variables
Shapes = Mapping[str, tuple[int, ...]]


class Entry(NamedTuple):
    """A tensor of the other library, and its place in our variables.

    Attributes:
      path: in our variables, such as ("params", "conv1", "conv", "kernel").
      shape, ours: its shape in the other library and in ours.
      sides: of a kernel, or of the maps that a dense layer reads flattened; None: not a kernel.
    """

    path: Path
    shape: tuple[int, ...]
    ours: tuple[int, ...]
    sides: tuple[int, int] | None

    def read(self, value: np.ndarray) -> np.ndarray:
        """Converts the other library's values to our axis order: (out, in, height, width) becomes HWIO."""
        if self.sides is None:
            return value
        return value.reshape(self.shape[0], -1, *self.sides).transpose(2, 3, 1, 0).reshape(self.ours)

    def write(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `read`."""
        if self.sides is None:
            return value
        return value.reshape(*self.sides, -1, self.shape[0]).transpose(3, 2, 0, 1).reshape(self.shape)


class NameTable(NamedTuple):
    """All names in a library's state dict of a network.

    Attributes:
      tensors: those that hold our variables.
      biases: of convolutions before batch norm, which have none here, as entries of the means that absorb them.
      counters: batch norm's counts of batches, which are not read; files from before 2018 lack them.
      classifiers: those of `tensors` whose first axis is the classes.
      heads: prefixes of the names of auxiliary heads, which our network may lack.
    """

    tensors: dict[str, Entry]
    biases: dict[str, Entry]
    counters: set[str]
    classifiers: set[str]
    heads: tuple[str, ...]


def _table(model: nn.Module, leaves: Mapping[Path, Any], names: Naming) -> NameTable:
    tensors, biases, counters, classifiers = {}, {}, set(), set()
    for path, leaf in leaves.items():
        *modules, name = path[1:]
        module = "/".join(modules)
        shape, sides = tuple(leaf.shape), None
        if name == "kernel" and len(shape) == 4:
            sides, shape = shape[:2], (shape[3], shape[2], *shape[:2])
        elif name == "kernel":
            sides = names.flattened.get(module, (1, 1))
            inputs, features = shape
            maps = (inputs // math.prod(sides), *sides)
            shape = (features, *maps) if module in names.convolutions else (features, inputs)
        peer = names.module(model, module)
        tensors[f"{peer}.{LEAVES[name]}"] = Entry(path, shape, tuple(leaf.shape), sides)
        if module in names.classifiers:
            classifiers.add(f"{peer}.{LEAVES[name]}")
        if name == "mean":
            counters.add(f"{peer}.num_batches_tracked")
            convolution = [*modules[:-1], "conv"]
            if names.biases and ("params", *convolution, "bias") not in leaves:
                biases[f"{names.module(model, '/'.join(convolution))}.bias"] = Entry(path, shape, shape, None)
    return NameTable(tensors, biases, counters, classifiers, names.heads)


def to_state_dict(model: nn.Module, variables: Mapping[str, Any], format: str) -> dict[str, np.ndarray]:
    """Converts the network's variables to the names, shapes and axis order of another library.

    The names are exactly those that the library's `load_state_dict(..., strict=True)` expects. Values are at least
    float32. Convolution biases that only the library has are zero, and so are the batch counters.

    Args:
      format: "torchvision", "timm" or "cadene".

    Raises:
      UserError: the library has no such network, or its network computes something else.
    """
    names = naming(model, format)
    check_options(model, format)
    leaves = flatten_dict({name: variables[name] for name in ("params", "batch_stats") if name in variables})
    table = _table(model, leaves, names)
    result = {}
    for name, entry in table.tensors.items():
        value = np.asarray(leaves[entry.path])
        result[name] = entry.write(value.astype(np.promote_types(value.dtype, np.float32)))
    result |= {name: np.zeros(entry.shape, np.float32) for name, entry in table.biases.items()}
    result |= {name: np.zeros((), np.int64) for name in table.counters}
    return result


def from_state_dict(
    model: nn.Module,
    tensors: Mapping[str, np.ndarray],
    format: str | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    classifier: bool = True,
) -> dict[str, Any]:
    """Converts another library's state dict to the network's variables, as NumPy arrays.

    Auxiliary heads that the network does not have are left out.

    Args:
      format: "torchvision", "timm" or "cadene"; None: the one whose names the tensors have.
      image_shape: (height, width, channels) of the network's inputs; None: its native size in color.
      classifier: False leaves out the layers whose outputs are classes, also in auxiliary heads, for use with other
        classes; the result then lacks them.

    Raises:
      UserError: the tensors belong to another network (which is named), some are missing, unknown or of another shape
        (these are listed), or the library's network computes something different.
    """
    leaves = _leaves(model, image_shape)
    format = format or recognize(model, tensors)
    try:
        check_options(model, format)
        table = _table(model, leaves, naming(model, format))
        _check(model, table, tensors, classifier)
    except UserError:
        recognize(model, tensors, format)  # if the tensors belong to another network, its error names that network
        raise
    result = {}
    for name, entry in table.tensors.items():
        if classifier or name not in table.classifiers:
            result[entry.path] = np.array(entry.read(tensors[name]), leaves[entry.path].dtype)
    for name, entry in table.biases.items():
        result[entry.path] -= tensors[name].astype(result[entry.path].dtype)
    return unflatten_dict(result)


def recognize(model: nn.Module, tensors: Mapping[str, np.ndarray], format: str | None = None) -> str:
    """The library whose version of the network has these tensors: any known one, or the given one.

    Raises:
      UserError: no library has the network, or the tensors clearly belong to another network, which is named.
    """
    candidates = formats(model) if format is None else [format]
    if not candidates:
        raise UserError(f"{' and '.join(NAMINGS)} have no {type(model).__name__}, so there are no weights to read")
    given = {name: tensor.shape for name, tensor in tensors.items()}
    likeness = {format: _signature(model, format).likeness(given) for format in candidates}
    format = max(candidates, key=likeness.__getitem__)
    if likeness[format] < SAME_NETWORK and (holds := identify(given)):
        whose, name = holds
        raise UserError(f"these are the weights of {whose}'s {name}, not of {format}'s {registered_name(model)}")
    return format


def count_classes(model: nn.Module, tensors: Mapping[str, np.ndarray], format: str) -> int | None:
    """The number of classes that the tensors are for; None: the classifier is missing."""
    names = naming(model, format)
    bias = tensors.get(f"{names.module(model, names.classifiers[0])}.bias")
    return None if bias is None else len(bias)


def _check(model: nn.Module, table: NameTable, tensors: Mapping[str, np.ndarray], classifier: bool) -> None:
    """Raises UserError unless the tensors match the table."""
    given = {name: tensor.shape for name, tensor in tensors.items()}
    wanted = {name: entry.shape for name, entry in table.tensors.items() if classifier or name not in table.classifiers}
    wanted |= {name: entry.shape for name, entry in table.biases.items()}
    known = wanted.keys() | table.counters | table.classifiers
    missing = [name for name in sorted(wanted) if name not in given]
    unknown = [name for name in sorted(given) if name not in known and not name.startswith(table.heads)]
    misshapen = [name for name in sorted(wanted) if given.get(name, wanted[name]) != wanted[name]]
    if misshapen and not missing and not unknown and table.classifiers.issuperset(misshapen):
        classes, own_classes = given[misshapen[0]][0], wanted[misshapen[0]][0]
        raise UserError(
            f"the weights are for {classes} classes, but this {registered_name(model)} is for {own_classes}: use as "
            "many, or leave the classifier out (classifier=False)"
        )
    complaints = {
        "missing": missing,
        "unknown": unknown,
        "of another shape": [f"{name} {given[name]} instead of {wanted[name]}" for name in misshapen],
    }
    if missing or unknown or misshapen:
        differing = [f"{len(found)} {what}: {listed(found, LISTED)}" for what, found in complaints.items() if found]
        raise UserError(f"the tensors do not match this {registered_name(model)}: {'; '.join(differing)}")


def _leaves(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict[Path, jax.ShapeDtypeStruct]:
    """The network's variables as shapes and dtypes; statistics are at least float32 and as wide as the parameters."""
    size = getattr(model, "native_image_size", 224)
    images = jax.ShapeDtypeStruct((1, *(image_shape or (size, size, 3))), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(variables["params"]))
    leaves: dict[Path, Any] = flatten_dict({**variables})
    for path, leaf in leaves.items():
        if path[0] == "batch_stats":
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaves


# Cached, since libraries with the same network are tried one after the other.
_nearest_leaves = lru_cache(maxsize=1)(_leaves)


class Signature(NamedTuple):
    """What identifies a library's network: all tensors except the classifiers and the auxiliary heads."""

    shapes: Shapes
    table: NameTable

    def likeness(self, given: Shapes) -> float:
        """The share of all names that are in both with the same shape (intersection over union)."""
        ignored = self.table.counters | self.table.classifiers
        names = {name for name in given if name not in ignored and not name.startswith(self.table.heads)}
        same = sum(given.get(name) == shape for name, shape in self.shapes.items())
        return same / len(names | self.shapes.keys())


def _signature(model: nn.Module, format: str) -> Signature:
    """The signature of the library's network that is nearest to ours."""
    names = naming(model, format)
    model = model.clone(**nearest_options(model, names), dtype=None, param_dtype=jnp.float32)
    table = _table(model, _nearest_leaves(model), names)
    shapes = {
        name: entry.shape
        for name, entry in (table.tensors | table.biases).items()
        if name not in table.classifiers and not name.startswith(table.heads)
    }
    return Signature(shapes, table)


def identify(given: Shapes) -> tuple[str, str] | None:
    """Whose tensors have these names and shapes, such as ("torchvision", "resnet18"); None: no known network."""
    for name in MODELS:
        for format in formats(create_model(name, num_classes=1000)):
            model = create_model(name, num_classes=1000)
            names = naming(model, format)
            # Few networks use this name for their classifier, and computing a network's shapes takes up to a second.
            if f"{names.module(model, names.classifiers[0])}.bias" not in given:
                continue
            try:
                model = create_model(name, num_classes=1000, **nearest_options(model, names))
            except UserError:  # the options fixed by its name are not the library's
                continue
            if _signature(model, format).likeness(given) >= SAME_NETWORK:
                return format, name
    return None


def registered_name(model: nn.Module) -> str:
    """The most specific name in MODELS for such a network, else the name of its class."""
    found = {}
    for name, constructor in MODELS.items():
        fixed = {}
        if isinstance(constructor, partial):
            fixed = signature(constructor.func).bind_partial(*constructor.args, **constructor.keywords).arguments
            constructor = constructor.func
        if constructor is type(model) and all(getattr(model, field) == value for field, value in fixed.items()):
            found[name] = len(fixed)
    return max(found, key=found.__getitem__, default=type(model).__name__)
