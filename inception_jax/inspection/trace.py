"""Traces every call of a network's modules in one abstract evaluation that computes nothing."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from inception_jax.models.layers import GlobalAvgPool, check_image_size


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of a module.

    Attributes:
      name: the module's path, such as "inception_3a/conv_1x1"; "" for the network itself.
      kind: "convolution" or "linear" if it contains one such layer, else the module's class in words: "max pool".
      window: (height, width) of the kernel or the pooling window, pixels; () if there is none, or more than one.
      strides: (vertical, horizontal), pixels.
      output: (height, width, channels) or (features,); () unless the module returns one array.
      depth: number of layers with kernels on the longest path from its input to its output.
      filters: output channels of its branches, by name, from the module's field `table`.
      parameters: number in the module and its submodules, counted at its first call only.
      statistics: number of values other than parameters, such as batch norm's means, counted in the same way.
      weights: the parameters that are kernels of convolutions and dense layers.
      multiply_adds: for one image; for each convolution, output positions x kernel x input channels of a group x output
        channels. Products with padding count, as in the papers; biases and pooling do not.
    """

    name: str
    kind: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    output: tuple[int, ...]
    depth: int
    filters: dict[str, Any]
    parameters: int
    statistics: int
    weights: int
    multiply_adds: int

    @property
    def level(self) -> int:
        """1 for the network's own submodules, 2 for theirs."""
        return self.name.count("/") + 1 if self.name else 0


@dataclasses.dataclass(frozen=True)
class Trace:
    """All calls of a network's modules, and the program in which they are marked.

    Attributes:
      rows: of the network itself, then of every call in the order of the calls.
      parents: for each row, the index of the call in which it happens; None for the network.
      layers: for each row, the number of calls of convolutions and dense layers in it.
      is_layer: for each row, whether it is itself such a layer.
      modules: for each row, its module's class in words.
      program: the network's computation, with marks that `read_mark` reads; its only input is the images.
    """

    rows: list[Row]
    parents: list[int | None]
    layers: list[int]
    is_layer: list[bool]
    modules: list[str]
    program: core.Jaxpr


@dataclasses.dataclass
class _Call:
    """A call during tracing; `layers` are the calls of convolutions and dense layers in it, including itself."""

    path: tuple[str, ...]
    module: type[nn.Module]
    table: Any
    parent: int | None
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    weights: int = 0
    multiply_adds: int = 0
    layers: list["_Call"] = dataclasses.field(default_factory=list)


def trace_layers(model: nn.Module, image_shape: Sequence[int]) -> list[Row]:
    """Returns a row for the network, then one for every call of a module in it, in the order of the calls.

    Works for any Linen network whose `__call__` takes images (batch, height, width, channels) and `train`. Only
    products in nn.Conv, nn.ConvTranspose, nn.Dense and nn.DenseGeneral are counted.

    Args:
      image_shape: (height, width, channels).

    Raises:
      UserError: the images are smaller than the network's `min_image_size`.
    """
    return trace(model, image_shape).rows


def trace(model: nn.Module, image_shape: Sequence[int]) -> Trace:
    """Like `trace_layers`, with what connects the calls."""
    images: Any = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    check_image_size(images, getattr(model, "min_image_size", 1))
    calls: list[_Call] = []
    stack: list[int] = []

    def watch(next_fun, args, kwargs, context):
        module = context.module
        # A method and the base class's method that it calls are one call.
        if context.method_name != "__call__" or (stack and calls[stack[-1]].path == module.path):
            return next_fun(*args, **kwargs)
        index, parent = len(calls), stack[-1] if stack else None
        call = _Call(module.path, type(module), getattr(module, "table", None), parent)
        calls.append(call)
        stack.append(index)
        args, kwargs = _mark((args, kwargs), f"enter {index}")
        y = next_fun(*args, **kwargs)
        call.output = tuple(y.shape[1:]) if isinstance(y, jax.Array) else ()
        is_layer = isinstance(module, nn.Conv | nn.ConvTranspose | nn.Dense | nn.DenseGeneral)
        call.window, call.strides = _window(module, *args)
        if is_layer:
            kernel = nn.meta.unbox(module.get_variable("params", "kernel"))
            weights = 0 if any(other.path == module.path and other.weights for other in calls) else kernel.size
            for outer in (calls[place] for place in stack):
                outer.weights += weights
                outer.multiply_adds += _multiply_adds(module, args[0], y, kernel)
                outer.layers.append(call)
        stack.pop()
        return _mark(y, f"{'layer' if is_layer else 'leave'} {index}")

    def run(images):
        with nn.intercept_methods(watch):
            return model.init_with_output(jax.random.key(0), images, train=False)

    jaxpr, (_, variables) = jax.make_jaxpr(run, return_shape=True)(images)
    return Trace(
        rows=_rows(calls, _depths(jaxpr.jaxpr), variables),
        parents=[call.parent for call in calls],
        layers=[len(call.layers) for call in calls],
        is_layer=[any(layer is call for layer in call.layers) for call in calls],
        modules=[_words(call.module) for call in calls],
        program=jaxpr.jaxpr,
    )


def _rows(calls: Sequence[_Call], depths: Mapping[int, int], variables: Mapping[str, Any]) -> list[Row]:
    paths = {call.path for call in calls}
    params, others = variables.get("params", {}), [tree for name, tree in variables.items() if name != "params"]
    rows, seen = [], set()
    for index, call in enumerate(calls):
        first = call.path not in seen
        seen.add(call.path)
        one = call.layers[0] if len(call.layers) == 1 else call
        fields = getattr(call.table, "_fields", ())
        filters = {field: getattr(call.table, field) for field in fields if (*call.path, field) in paths}
        rows.append(
            Row(
                name="/".join(call.path),
                kind=_words(one.module),
                window=one.window,
                strides=one.strides,
                output=call.output,
                depth=depths[index],
                filters=filters,
                parameters=_count(params, call.path) if first else 0,
                statistics=sum(_count(tree, call.path) for tree in others) if first else 0,
                weights=call.weights,
                multiply_adds=call.multiply_adds,
            )
        )
    return rows


def _words(module: type[nn.Module]) -> str:
    """InceptionModule is "inception", MaxPool "max pool"."""
    names = {
        "Conv": "convolution",
        "Dense": "linear",
        "DenseGeneral": "linear",
        "GlobalAvgPool": "avg pool",
        "InceptionV3AuxHead": "aux head",
    }
    name = names.get(module.__name__, module.__name__.strip("_").removesuffix("Module") or "module")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _window(module: nn.Module, *args: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(module, GlobalAvgPool):
        return tuple(args[0].shape[1:3]), (1, 1)
    window = getattr(module, "kernel_size", getattr(module, "window", ()))
    window = (window,) if isinstance(window, int) else tuple(window)
    strides = getattr(module, "strides", None) or 1
    return window, (strides,) * len(window) if isinstance(strides, int) else tuple(strides)


def _multiply_adds(module: nn.Module, x: jax.Array, y: jax.Array, kernel: jax.Array) -> int:
    """The kernel is applied at every output position, or every input position of a transposed convolution."""
    positions = x.size // x.shape[-1] if isinstance(module, nn.ConvTranspose) else y.size // np.prod(module.features)
    return int(positions * kernel.size)


def _count(variables: Mapping[str, Any], path: tuple[str, ...]) -> int:
    node: Any = variables
    for name in path:
        node = node.get(name, {}) if isinstance(node, Mapping) else {}
    return sum(leaf.size for leaf in jax.tree.leaves(node))


def _mark(tree: Any, name: str) -> Any:
    """Returns the same arrays, with a name in the jaxpr that `read_mark` reads."""
    return jax.tree.map(lambda x: checkpoint_name(x, name) if isinstance(x, jax.Array) else x, tree)


def read_mark(equation: core.JaxprEqn) -> tuple[str, int] | None:
    """("enter", index of a call) at its inputs, "layer" or "leave" at its outputs; None for all other equations."""
    if equation.primitive.name != "name":
        return None
    mark, _, index = equation.params["name"].partition(" ")
    return (mark, int(index)) if mark in ("enter", "layer", "leave") else None


def walk(
    program: core.Jaxpr,
    inputs: Sequence[Any],
    visit: Callable[[core.JaxprEqn, list[Any]], Sequence[Any]],
    *,
    constant: Any,
    enters: Callable[[core.JaxprEqn], bool] = lambda equation: True,
) -> list[Any]:
    """Follows a value for each variable through a program, in the order of its equations; returns those of its outputs.

    Args:
      visit: from an equation and the values of its inputs to those of its outputs.
      constant: the value of all that does not depend on the inputs.
      enters: whether to follow the equations inside one that has any, of jitted and rematerialized parts, instead.
    """
    values: dict[Any, Any] = dict(zip(program.invars, inputs, strict=True))

    def look_up(variable):
        return constant if isinstance(variable, core.Literal) else values.get(variable, constant)

    for equation in program.eqns:
        into = [look_up(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(into) and enters(equation):
            out = walk(inner, into, visit, constant=constant, enters=enters)
        else:
            out = visit(equation, into)
        values.update(zip(equation.outvars, out, strict=False))
    return [look_up(variable) for variable in program.outvars]


def _depths(program: core.Jaxpr) -> dict[int, int]:
    """For every call, the number of layers on the longest path from its marked inputs to its marked outputs."""
    enter: dict[int, int] = {}
    leave: dict[int, int] = {}

    def visit(equation: core.JaxprEqn, into: list[int]) -> list[int]:
        depth, found = max(into, default=0), read_mark(equation)
        if found:
            mark, index = found
            depth += mark == "layer"
            reached = enter if mark == "enter" else leave
            reached[index] = max(reached.get(index, 0), depth)
        return [depth] * len(equation.outvars)

    walk(program, [0] * len(program.invars), visit, constant=0)
    return {index: leave.get(index, 0) - enter.get(index, 0) for index in range(max(leave, default=-1) + 1)}
