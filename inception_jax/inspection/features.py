"""What a network sees: activations of its layers, and class activation maps (Grad-CAM)."""

import contextlib
import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict
from jax import numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from inception_jax.errors import UserError, unknown_name
from inception_jax.inspection.trace import Row, trace_layers
from inception_jax.models.layers import as_outputs

SMALLEST_MAP = 4  # pixels: side of the maps in which Grad-CAM looks unless told; smaller ones show no place


def activations(
    model: nn.Module, variables: Mapping[str, Any], images: Any, layers: str | Iterable[str] | None = None
) -> dict[str, jax.Array]:
    """The outputs of layers at inference, by layer, in the order of `layers`; each (batch, ...).

    If a module is called several times, its last output is returned.

    Args:
      images: the network's inputs (batch, height, width, channels), normalized: `run.normalize(images)`.
      layers: paths of modules, "inception_3a/conv_3x3", or shell patterns, "inception_*/conv_5x5", in which each part
        between slashes is matched separately. None: all direct submodules of the network.

    Raises:
      UserError: the images are not inputs of the network, or there is no such layer (the nearest name is suggested).
    """
    images = network_inputs(images)
    names = _names(trace_layers(model, images.shape[1:]))
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else layers
    wanted = tuple(dict.fromkeys(name for pattern in patterns for name in _match(pattern, names)))
    with fitting(images):
        found = _activations(dict(variables), images, model=model, layers=wanted)
    return dict(zip(wanted, found, strict=True))


def network_inputs(images: Any) -> jax.Array:
    """Checks that the images are floating-point (batch, height, width, channels), and returns them as a JAX array.

    Raises:
      UserError: the images are something else, such as uint8.
    """
    if not hasattr(images, "dtype"):
        images = np.asarray(images)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            "images must be the network's inputs, floating-point (batch, height, width, channels), not "
            f"{images.dtype} {images.shape}: run.normalize(images) converts uint8 images"
        )
    return jnp.asarray(images)


@contextlib.contextmanager
def fitting(images: jax.Array) -> Iterator[None]:
    """Raises UserError if the network's weights are for images of another shape."""
    try:
        yield
    except ScopeParamShapeError as error:
        why = str(error).splitlines()[0].partition(" (http")[0]
        raise UserError(
            f"images of {'x'.join(map(str, images.shape[1:]))} do not fit these variables: {why}"
        ) from error


@partial(jax.jit, static_argnames=("model", "layers"))
def _activations(variables: dict[str, Any], images: jax.Array, *, model: nn.Module, layers: tuple[str, ...]) -> list:
    return [calls[-1] for calls in _apply_and_keep(model, variables, images, layers)[1]]


def _apply_and_keep(
    model: nn.Module, variables: dict[str, Any], images: jax.Array, layers: Sequence[str]
) -> tuple[Any, list]:
    """The network's outputs, and the outputs of every call of each layer."""

    def keep(module, method):
        return method == "__call__" and "/".join(module.path) in layers

    outputs, state = model.apply(variables, images, train=False, capture_intermediates=keep)
    kept = flatten_dict(state.get("intermediates", {}))
    return outputs, [kept[(*layer.split("/"), "__call__")] for layer in layers]


def grad_cam(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Any,
    layer: str | None = None,
    classes: int | Sequence[int] | Any = None,
) -> Float[Array, "batch height width"]:
    """Regions of each image that support a class: Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

    The layer's maps are weighted by the gradient of the class's logit, averaged over positions, then summed and passed
    through a ReLU. The result is resized bilinearly to the images' size and divided by its maximum: 0 to 1, or 0
    everywhere if nothing supports the class.

    Args:
      images: the network's inputs (batch, height, width, channels), normalized: `run.normalize(images)`.
      layer: path of a module that returns maps (batch, height, width, channels). None: the last direct submodule of the
        network that has parameters and returns maps of at least 4x4 pixels; smaller ones show no place.
      classes: one for all images, or one for each; None: the most probable class of each image.

    Raises:
      UserError: the images are not inputs of the network, there is no such layer, the layer does not return maps, or
        a class is out of range.
    """
    images = network_inputs(images)
    rows = trace_layers(model, images.shape[1:])
    if layer is None:
        layer = _last_maps(rows)
    elif layer not in (names := _names(rows)):
        raise _unknown_layer(layer, names)
    elif not any(row.name == layer and len(row.output) == 3 for row in rows):
        raise UserError(f"layer {layer!r} does not return maps (batch, height, width, channels): choose another")
    with fitting(images):
        if classes is not None:
            classes = jnp.broadcast_to(jnp.asarray(classes), images.shape[:1])
            logits = as_outputs(jax.eval_shape(partial(model.apply, train=False), dict(variables), images)).logits
            known = not isinstance(classes, Tracer)  # within jax.jit there is no value yet that could be checked
            if known and not bool(((classes >= 0) & (classes < logits.shape[-1])).all()):
                raise UserError(
                    f"classes={classes.tolist()} is not allowed: they must be from 0 to {logits.shape[-1] - 1}"
                )
        return _grad_cam(dict(variables), images, classes, model=model, layer=layer)


@partial(jax.jit, static_argnames=("model", "layer"))
def _grad_cam(
    variables: dict[str, Any], images: jax.Array, classes: jax.Array | None, *, model: nn.Module, layer: str
) -> jax.Array:
    def score(change, last):
        """The sum of the chosen logits, each of its own image only, with `change` added to the layer's last output."""
        returns = itertools.count(1)

        def add(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            here = context.method_name == "__call__" and "/".join(context.module.path) == layer
            return y + change if here and next(returns) == last else y

        with nn.intercept_methods(add):
            outputs, (maps,) = _apply_and_keep(model, variables, images, (layer,))
        logits = as_outputs(outputs).logits
        chosen = logits.argmax(-1) if classes is None else classes
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum(), maps

    _, shapes = jax.eval_shape(lambda: score(None, None))
    nothing = jnp.zeros(shapes[-1].shape, shapes[-1].dtype)
    gradient, (*_, maps) = jax.grad(score, has_aux=True)(nothing, len(shapes))
    dtype = jnp.promote_types(maps.dtype, jnp.float32)
    weights = gradient.astype(dtype).mean((1, 2), keepdims=True)
    heat = nn.relu((weights * maps.astype(dtype)).sum(-1))
    heat = jax.image.resize(heat, images.shape[:3], "bilinear")
    highest = heat.max((1, 2), keepdims=True)
    return heat / jnp.where(highest > 0, highest, 1)


def _last_maps(rows: Sequence[Row]) -> str:
    """The last layer with parameters and maps of some size, at the highest level that has one."""
    candidates = [row for row in rows if row.name and row.parameters and len(row.output) == 3]
    if not candidates:
        raise UserError("no layer of this network returns maps (batch, height, width, channels)")
    large = [row for row in candidates if min(row.output[:2]) >= SMALLEST_MAP]
    candidates = large or [row for row in candidates if row.output[:2] != (1, 1)] or candidates
    level = min(row.level for row in candidates)
    return [row.name for row in candidates if row.level == level][-1]


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.name for row in rows if row.name))


def _match(pattern: str, names: Sequence[str]) -> list[str]:
    if pattern in names:
        return [pattern]
    parts = pattern.split("/")
    matches = [name for name in names if len(name.split("/")) == len(parts) and _matches(name.split("/"), parts)]
    if not matches:
        raise _unknown_layer(pattern, names)
    return matches


def _matches(name: Sequence[str], patterns: Sequence[str]) -> bool:
    return all(fnmatch.fnmatchcase(part, pattern) for part, pattern in zip(name, patterns, strict=True))


def _unknown_layer(name: str, names: Sequence[str]) -> UserError:
    """Suggests the nearest name in the innermost existing module of its path."""
    parent = name
    while parent:
        parent = parent.rpartition("/")[0]
        beside = [other for other in names if other.rpartition("/")[0] == parent]
        if beside and (not parent or parent in names):
            return unknown_name("layer", name, beside)
    raise AssertionError("a network without layers")
