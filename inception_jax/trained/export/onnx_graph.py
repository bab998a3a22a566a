"""Writes a network as an ONNX graph from its jaxpr.

Existing converters would force old versions of other packages on users, and the networks here need few primitives.
Platform-dependent code (`ops`) is written as for accelerators, with XLA's own convolutions and windows.

Feature maps here are NHWC, but ONNX's operators expect NCHW. Their outputs stay NCHW through all operations that can
work in NCHW, and are transposed only for the others: runtimes fuse a convolution with its bias and ReLU only if nothing
is between them, and not all of them remove transposes that cancel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend import core

from inception_jax.errors import UserError

OPSET, IR_VERSION = 17, 8  # from 2022: read by onnxruntime 1.14 and later
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
AXIS_IN_NCHW = (0, 2, 3, 1)  # for each axis of NHWC
ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "abs": "Abs", "erf": "Erf",
    "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal",
}  # fmt: skip
REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
SAME = ("copy", "copy_p", "optimization_barrier", "stop_gradient", "reduce_precision")
NESTED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")

Value = np.ndarray | str  # a constant, or the name of a value that the graph computes


def to_onnx(network: Callable[[Any, jax.Array], jax.Array], variables: Any, shape: Sequence[int], dtype: str) -> bytes:
    """A serialized ONNX model with the input "images" (batch, *shape) and the output "logits" (batch, classes).

    Args:
      network: (variables, images) -> logits.
      dtype: of the images, "float32" or "uint8".

    Raises:
      UserError: the network uses an unsupported operation, or the package onnx is missing.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise UserError("ONNX export needs onnx, which is not installed: pip install 'inception-jax[onnx]'") from None
    (batch,) = jax_export.symbolic_shape("batch")
    traced = jax.make_jaxpr(network)(variables, jax.ShapeDtypeStruct((batch, *shape), dtype))
    paths = jax.tree_util.tree_leaves_with_path(variables)
    graph = _Graph(onnx)
    for path, leaf in paths:
        graph.names[id(leaf)] = "/".join(str(getattr(key, "key", key)) for key in path)
    (logits,) = graph.inline(traced.jaxpr, traced.consts, [*(leaf for _, leaf in paths), "images"])
    graph.add("Identity", [logits], output="logits")
    (out,) = traced.out_avals
    kinds = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}
    make = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "inception_jax",
            [make("images", kinds[dtype], ["batch", *shape])],
            [make("logits", onnx.TensorProto.FLOAT, ["batch", *out.shape[1:]])],
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="inception_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """Nodes and initializers, in the order of computation."""

    def __init__(self, onnx: Any):
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[int, str] = {}  # of arrays, by their id
        self._onnx = onnx
        self._constants: dict[Any, str] = {}
        self._kept: list[np.ndarray] = []  # keeps arrays alive, so that their ids are not reused
        self._broadcast: set[str] = set()  # values smaller than their shape, broadcast by NumPy's rules
        self._values: dict[str, np.ndarray] = {}  # constants that were broadcast
        self._nchw: dict[str, str] = {}  # NCHW names by NHWC names
        self._postponed: set[str] = set()  # NHWC names that nothing has used yet

    def inline(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Writes a jaxpr; returns its outputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype) if isinstance(atom, core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self._write(equation, [read(atom) for atom in equation.invars])
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, kind: str, inputs: Sequence[Value], output: str = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        name = output or f"{kind}_{len(self.nodes)}"
        self._add(kind, inputs, [name], name, attributes)
        return name

    def _add(self, kind: str, inputs: Sequence[Value], outputs: list[str], name: str, attributes: dict) -> None:
        given = [self._name(value) for value in inputs]
        self.nodes.append(self._onnx.helper.make_node(kind, given, outputs, name=name, **attributes))

    def _name(self, value: Value) -> str:
        """A value's name. On first use, constants become initializers, and maps in NCHW are transposed to NHWC."""
        if isinstance(value, str):
            if value in self._values:
                return self._name(self._values[value])
            if value in self._postponed:
                self._postponed.remove(value)
                self.add("Transpose", [self._nchw[value]], output=value, perm=list(TO_NHWC))
            return value
        key = (id(value),) if value.size > 64 else (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self.names.get(id(value), f"constant_{len(self._constants)}")
            self._constants[key] = name
            self.initializers.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
            self._kept.append(value)
        return self._constants[key]

    def _write(self, equation: Any, inputs: list[Value]) -> list[Value]:
        primitive, params = equation.primitive.name, equation.params
        if primitive == "platform_index":
            return [np.asarray(-1)]
        if primitive == "cond":
            # Of platform-dependent branches, the last is the default.
            index = inputs[0]
            if isinstance(index, str):
                raise _unknown("cond with a predicate that depends on the images")
            branch = params["branches"][int(index)]
            return self.inline(branch.jaxpr, branch.consts, inputs[1:])
        if primitive in NESTED:
            nested = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
            return self.inline(getattr(nested, "jaxpr", nested), getattr(nested, "consts", ()), inputs)
        if not any(isinstance(value, str) for value in inputs):
            results = equation.primitive.bind(*map(jnp.asarray, inputs), **params) if _is_constant(equation) else None
            if results is not None:
                return list(map(np.asarray, results if equation.primitive.multiple_results else [results]))
        if primitive in SAME:
            return inputs
        if primitive in ELEMENTWISE or primitive == "select_n":
            if primitive == "select_n":
                result = self._select_n(equation, *inputs)
            elif primitive == "max" and any(_is_zero(value) for value in inputs):
                (x,) = (value for value in inputs if not _is_zero(value))
                result = self._elementwise("Relu", [x])  # which runtimes fuse with a convolution
            else:
                result = self._elementwise(ELEMENTWISE[primitive], inputs)
            if all(value in self._broadcast for value in inputs if isinstance(value, str)):
                self._broadcast.add(result)
            return [result]
        write = getattr(self, f"_{primitive}", None)
        if write is None and primitive not in REDUCTIONS:
            raise _unknown(f"the operation {primitive}")
        if any(value in self._broadcast for value in inputs if isinstance(value, str)):
            raise _unknown(f"{primitive} of arrays broadcast over the batch")
        if primitive in REDUCTIONS:
            x, axes = self._to_reduce(inputs[0], params["axes"])
            result = self.add(REDUCTIONS[primitive], [x], axes=axes, keepdims=0)
        else:
            assert write is not None
            result = write(equation, *inputs)
        return result if isinstance(result, list) else [result]

    def _elementwise(self, kind: str, inputs: Sequence[Value], **attributes: Any) -> str:
        """An elementwise operator, in NCHW if one of the inputs is in NCHW and the others can be."""
        if any(map(self._is_nchw, inputs)):
            first = [self._channels_first(value) for value in inputs]
            known = [value for value in first if value is not None]
            if len(known) == len(first):
                return self._from_nchw(self.add(kind, known, **attributes))
        return self.add(kind, inputs, **attributes)

    def _channels_first(self, value: Value) -> Value | None:
        """The value in NCHW, if that needs no operation."""
        if isinstance(value, str):
            if value not in self._values:
                return self._nchw.get(value)
            value = self._values[value]
        return value.transpose(TO_NCHW) if value.ndim == 4 else value if value.ndim == 0 else None

    def _from_nchw(self, maps: str) -> str:
        """The NHWC name of maps that exist in NCHW."""
        name = f"{maps}_nhwc"
        self._nchw[name] = maps
        self._postponed.add(name)
        return name

    def _is_nchw(self, *values: Value) -> bool:
        """Whether all values exist in NCHW."""
        return all(isinstance(value, str) and value in self._nchw for value in values)

    def _to_reduce(self, x: Value, axes: Sequence[int]) -> tuple[Value, list[int]]:
        """The input and axes of a reduction: maps in NCHW if the remaining axes keep their order."""
        if isinstance(x, str) and x in self._nchw and {1, 2} <= set(axes):
            return self._nchw[x], [AXIS_IN_NCHW[axis] for axis in axes]
        return x, list(axes)

    # One method for each primitive that is not simply an ONNX operator.

    def _square(self, equation, x):
        return self._elementwise("Mul", [x, x])

    def _integer_pow(self, equation, x):
        return self._elementwise("Pow", [x, np.asarray(equation.params["y"], equation.invars[0].aval.dtype)])

    def _rsqrt(self, equation, x):
        return self._elementwise("Reciprocal", [self._elementwise("Sqrt", [x])])

    def _convert_element_type(self, equation, x):
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
        return self._elementwise("Cast", [x], to=kind)

    def _select_n(self, equation, which, *cases):
        if len(cases) != 2:
            raise _unknown("select_n with more than two cases")
        return self._elementwise("Where", [which, cases[1], cases[0]])

    def _reshape(self, equation, x):
        return self.add("Reshape", [x, _sizes(equation.outvars[0].aval.shape)])

    _squeeze = _expand_dims = _reshape

    def _broadcast_in_dim(self, equation, x):
        shape, places = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
        source = equation.invars[0].aval.shape
        sizes = [1] * len(shape)
        for place, size in zip(places, source, strict=True):
            sizes[place] = size
        if isinstance(x, np.ndarray):  # repeated for each image
            name = f"broadcast_{len(self._values)}"
            self._values[name] = x.reshape(sizes)
            self._broadcast.add(name)
            return name
        x = self.add("Reshape", [x, _sizes(sizes)])
        if all(isinstance(size, int) for size in shape):
            return self.add("Expand", [x, np.asarray(shape, np.int64)])
        self._broadcast.add(x)
        return x

    def _transpose(self, equation, x):
        return self.add("Transpose", [x], perm=list(equation.params["permutation"]))

    def _concatenate(self, equation, *parts):
        axis = equation.params["dimension"]
        if self._is_nchw(*parts):
            maps = self.add("Concat", [self._nchw[part] for part in parts], axis=AXIS_IN_NCHW[axis])
            return self._from_nchw(maps)
        return self.add("Concat", parts, axis=axis)

    def _stack(self, equation, *parts):
        axis = equation.params["axis"]
        shape = list(equation.outvars[0].aval.shape)
        shape[axis] = 1
        return self.add("Concat", [self.add("Reshape", [part, _sizes(shape)]) for part in parts], axis=axis)

    def _split(self, equation, x):
        sizes, name = np.asarray(equation.params["sizes"], np.int64), f"Split_{len(self.nodes)}"
        parts, axis = [f"{name}_{index}" for index in range(len(sizes))], equation.params["axis"]
        if self._is_nchw(x):
            self._add("Split", [self._nchw[x], sizes], parts, name, {"axis": AXIS_IN_NCHW[axis]})
            return list(map(self._from_nchw, parts))
        self._add("Split", [x, sizes], parts, name, {"axis": axis})
        return parts

    def _slice(self, equation, x):
        params, shape = equation.params, equation.invars[0].aval.shape
        strides = params["strides"] or (1,) * len(shape)
        rows = [
            (start, limit, axis, stride)
            for axis, (start, limit, stride) in enumerate(
                zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            )
            if not (isinstance(start, int) and start == 0 and limit == shape[axis] and stride == 1)
        ]
        if not rows:
            return x
        first, nchw = x, self._is_nchw(x)
        if nchw:
            first = self._nchw[x]
            rows = [(start, limit, AXIS_IN_NCHW[axis], stride) for start, limit, axis, stride in rows]
        result = self.add("Slice", [first, *(np.asarray(column, np.int64) for column in zip(*rows, strict=True))])
        return self._from_nchw(result) if nchw else result

    def _pad(self, equation, x, value):
        config = equation.params["padding_config"]
        if any(interior for _, _, interior in config):
            raise _unknown("interior padding")
        nchw = self._is_nchw(x)
        if nchw:
            x, config = self._nchw[x], [config[axis] for axis in TO_NCHW]
        pads = np.asarray([low for low, _, _ in config] + [high for _, high, _ in config], np.int64)
        result = self.add("Pad", [x, pads, value])  # negative padding crops, as in JAX
        return self._from_nchw(result) if nchw else result

    def _reduce_sum(self, equation, x):
        x, axes = self._to_reduce(x, equation.params["axes"])
        return self.add("ReduceSum", [x, np.asarray(axes, np.int64)], keepdims=0)

    def _dot_general(self, equation, x, y):
        (x_axes, y_axes), (x_batch, y_batch) = equation.params["dimension_numbers"]
        rank = len(equation.invars[0].aval.shape)
        if (tuple(x_axes), tuple(y_axes), x_batch, y_batch) != ((rank - 1,), (0,), (), ()):
            raise _unknown("dot_general over other axes than the last and the first")
        return self.add("MatMul", [x, y])

    def _reduce_window_max(self, equation, x):
        params = equation.params
        if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
            raise _unknown("dilated windows")
        return self._in_nchw("MaxPool", [x], params["window_dimensions"], params["window_strides"], params["padding"])

    def _conv_general_dilated(self, equation, x, kernel):
        params = equation.params
        numbers = params["dimension_numbers"]
        layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
        if layout != (TO_NCHW, (3, 2, 0, 1), TO_NCHW) or params["batch_group_count"] != 1:
            raise _unknown("convolutions with another layout than NHWC")
        if any(d != 1 for d in params["lhs_dilation"]):
            raise _unknown("transposed convolutions")
        if isinstance(kernel, str):
            kernel = self.add("Transpose", [kernel], perm=[3, 2, 0, 1])
        else:
            name = self.names.get(id(kernel))
            kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            if name:
                self.names[id(kernel)] = name
        height, width = equation.invars[1].aval.shape[:2]
        return self._in_nchw(
            "Conv",
            [x, kernel],
            (1, height, width, 1),
            (1, *params["window_strides"], 1),
            ((0, 0), *params["padding"], (0, 0)),
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )

    def _in_nchw(self, kind: str, inputs: list[Value], window, strides, pads, **attributes: Any) -> str:
        """An ONNX operator on windows of NHWC maps."""
        if window[0] != 1 or window[3] != 1 or any(low or high for low, high in (pads[0], pads[3])):
            raise _unknown("windows over the batch or channels")
        (top, bottom), (left, right) = pads[1:3]
        x = inputs[0]
        maps = self._nchw.get(x) if isinstance(x, str) else None
        if maps is None:
            maps = self.add("Transpose", [x], perm=list(TO_NCHW))
            if isinstance(x, str):
                self._nchw[x] = maps
        if min(top, bottom, left, right) < 0:  # ONNX does not crop here
            cut = np.asarray([0, 0, min(top, 0), min(left, 0), 0, 0, min(bottom, 0), min(right, 0)], np.int64)
            maps = self.add("Pad", [maps, cut])
        pads = [max(side, 0) for side in (top, left, bottom, right)]
        maps = self.add(
            kind,
            [maps, *inputs[1:]],
            kernel_shape=list(window[1:3]),
            strides=list(strides[1:3]),
            pads=pads,
            **attributes,
        )
        return self._from_nchw(maps)


def _is_zero(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.shape == () and value == 0


def _is_constant(equation: Any) -> bool:
    """Whether its outputs have known shapes."""
    return all(isinstance(size, int) for out in equation.outvars for size in out.aval.shape)


def _sizes(shape: Sequence[Any]) -> np.ndarray:
    """For Reshape: -1 stands for the one size that depends on the batch."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        raise _unknown("shapes with two sizes that depend on the batch")
    return np.asarray(sizes, np.int64)


def _unknown(what: str) -> UserError:
    return UserError(f"ONNX export does not support {what}")
