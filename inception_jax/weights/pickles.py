"""Reads PyTorch's pickles safely: nothing is imported, and no code from the file is called.

Dicts, lists, numbers, strings and tensors are known, each made by a function of this module. All other objects, such
as what training programs save next to the tensors, become `Foreign`: a name and little else.
"""

import pickletools
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from inception_jax.errors import UserError

# Memory that a pickle may take, in bytes for each of its own, plus a constant. PyTorch's pickles take 10 to 40; the
# densest that Python writes (small dicts of small numbers) take 50. Sizes of values are CPython's, rounded up.
BYTES_PER_BYTE = 64
HEAD = 64 * 1024
OBJECT, CELL, ITEM, STORAGE, TENSOR, AXIS = 80, 9, 90, 200, 800, 32
LONGEST_NAME = 200  # of a module or an attribute
LONGEST_KEY = 1000  # of a storage or a dict; longer ones are dropped with their values, as no tensor has such a name
MOST_ARGUMENTS = 16  # of a call to a known function
MOST_AXES = 64  # NumPy's limit
LARGEST = 2**63  # PyTorch's numbers have 64 bits


class Storage(NamedTuple):
    """Numbers elsewhere in the file, of which tensors are views; `start` is the offset of the storage's first one."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0


class Tensor(NamedTuple):
    """A tensor whose numbers have not been read; it views its storage as `dtype`, in which offset and strides count."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Foreign:
    """An object of unknown type.

    Attributes:
      name: of the class or function that would create it.
      is_tensor: whether it is a tensor or is made from one.
      items: its items if it is of a class derived from dict.
    """

    __slots__ = ("is_tensor", "items", "name")

    def __init__(self, name: str, is_tensor: bool = False):
        self.name, self.is_tensor = name, is_tensor
        self.items: dict | None = None


def _tensor(storage, offset, shape, strides, _requires_grad=None, _hooks=None, metadata=None) -> Tensor | Foreign:
    return _view(storage, getattr(storage, "dtype", None), offset, shape, strides, metadata)


def _tensor_of_type(storage, offset, shape, strides, _requires_grad, _hooks, dtype, metadata=None) -> Tensor | Foreign:
    return _view(storage, dtype, offset, shape, strides, metadata)


def _view(storage, dtype, offset, shape, strides, metadata) -> Tensor | Foreign:
    for unknown in (storage, dtype):
        if isinstance(unknown, Foreign):
            return Foreign(unknown.name, is_tensor=True)
    if isinstance(metadata, dict) and any(value is True for value in metadata.values()):
        return Foreign("torch._C._set_tensor_metadata", is_tensor=True)  # its values are the storage's, negated
    if not (isinstance(storage, Storage) and isinstance(dtype, np.dtype)):
        raise ValueError("a tensor without storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MOST_AXES):
        raise ValueError("a tensor without shape and strides")
    if not all(isinstance(number, int) and 0 <= number < LARGEST for number in (offset, *shape, *strides)):
        raise ValueError("a tensor with an impossible shape, strides or offset")
    return Tensor(storage, dtype, offset, shape, strides)


def _parameter(data, *_) -> Tensor | Foreign:
    """A tensor in another form: a parameter, on another device, or of a class of its own."""
    if isinstance(data, Foreign):
        return Foreign(data.name, is_tensor=True)
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _of_class(function, _kind, arguments, _state=None) -> Tensor | Foreign:
    if isinstance(function, Foreign):
        return Foreign(function.name, is_tensor=True)
    if function not in (_tensor, _tensor_of_type, _parameter):
        raise ValueError("a tensor that something else makes")
    return _call(function, arguments)


def _size(numbers=()) -> tuple:
    if not isinstance(numbers, tuple):
        raise ValueError("a shape that is not a tuple")
    return numbers


def _ordered_dict(pairs=()) -> dict:
    """Python 2 pickles it with pairs as lists; Python 3 creates it empty."""
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError("a dict of things that are not pairs")
    result = {}
    _set_items(result, [part for pair in pairs for part in pair])
    return result


# All globals in the pickles of a state dict, by module and name as written there.
GLOBALS: Mapping[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_type,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": _parameter,
    "torch._tensor _rebuild_from_type": _of_class,
    "torch._tensor _rebuild_from_type_v2": _of_class,
    "torch.nn.parameter Parameter": _parameter,
    "torch Size": _size,
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch HalfStorage": np.dtype("<f2"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch CharStorage": np.dtype("<i1"),
    "torch ByteStorage": np.dtype("<u1"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
    "torch BoolStorage": np.dtype("?"),
    "torch ComplexFloatStorage": np.dtype("<c8"),
    "torch ComplexDoubleStorage": np.dtype("<c16"),
    # Quantized tensors are not read, but the older format needs the sizes of their storages to skip them.
    "torch QInt8Storage": np.dtype("<i1"),
    "torch QUInt8Storage": np.dtype("<u1"),
    "torch QInt32Storage": np.dtype("<i4"),
    "torch QUInt4x2Storage": np.dtype("<u1"),
    "torch QUInt2x4Storage": np.dtype("<u1"),
    # Bytes; the tensor says how to view them.
    "torch UntypedStorage": np.dtype("<u1"),
    "torch.storage UntypedStorage": np.dtype("<u1"),
    **{
        f"torch {name}": np.dtype(getattr(ml_dtypes, name, name))
        for name in (
            "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
            "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
            "float8_e5m2fnuz", "float8_e8m0fnu",
        )
    },
}  # fmt: skip
MAKE_TENSORS = ("torch._utils _rebuild_", "torch._tensor _rebuild_")  # prefixes of functions that create tensors
CONSTANTS = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTIES = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Stack:
    """The state of the machine that executes a pickle: values, the marks between them, and the memo."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def pop(self, number: int) -> list[Any]:
        """The last values, in the order in which they were pushed. Raises IndexError if there are fewer."""
        return [self.values.pop() for _ in range(number)][::-1]

    def pop_to_mark(self) -> list[Any]:
        """The values since the last mark. Raises IndexError if there is no mark."""
        mark = self.marks.pop()
        items = self.values[mark:]
        del self.values[mark:]
        return items


class Reader:
    """Reads the pickles of one file, one after the other.

    Attributes:
      storages: the dtype of each storage that was named, by key.
      foreign: the name of the first unknown object.
    """

    def __init__(self, path: Path, file: Any):
        """`file` has `read`, `readline` and `tell`, and is positioned at the first pickle."""
        self.storages: dict[str, np.dtype] = {}
        self.foreign: str | None = None
        self._path, self._file = path, file
        self._taken = 0

    def read(self) -> Any:
        """Reads the pickle at the file's position; storages and tensors are described, their numbers are not read.

        Raises:
          UserError: the pickle has an operation that no state dict needs, or needs too much memory.
          ValueError and others: the pickle cannot be decoded.
        """
        stack = _Stack()
        for opcode, argument, position in _operations(self._file):
            if self._taken > BYTES_PER_BYTE * (position or 0) + HEAD:
                raise UserError(
                    f"{self._path} needs more than {BYTES_PER_BYTE} bytes of memory for each of its own, which no "
                    "state dict does: it is damaged or malicious"
                )
            name: str = opcode.name
            self._taken += CELL  # of the stack or the memo
            if name == "STOP":
                return stack.values.pop()
            known = (
                name in ("PROTO", "FRAME")
                or self._push_value(name, argument, stack)
                or self._arrange(name, argument, stack)
                or self._make_or_fill(name, argument, stack)
            )
            if not known:
                raise UserError(
                    f"{self._path} contains a pickle with the operation {name}, which no state dict needs: in "
                    "PyTorch, save only model.state_dict()"
                )
        raise EOFError("a pickle without an end")

    def _push_value(self, name: str, argument: Any, stack: "_Stack") -> bool:
        """Executes an operation that pushes a constant, an empty container, a tuple or a set; False for all others."""
        if name in CONSTANTS:
            self._taken += sys.getsizeof(argument)
            stack.values.append(argument)
        elif name in VALUES:
            stack.values.append(VALUES[name])
        elif name in EMPTIES:
            self._taken += OBJECT
            stack.values.append(EMPTIES[name]())
        elif name == "EMPTY_TUPLE":
            stack.values.append(())
        elif name in TUPLES or name == "TUPLE":
            items = stack.pop_to_mark() if name == "TUPLE" else stack.pop(TUPLES[name])
            self._taken += OBJECT + CELL * len(items)
            stack.values.append(tuple(items))
        elif name == "EMPTY_SET":
            stack.values.append(self._foreign("builtins set"))
        elif name == "FROZENSET":
            stack.pop_to_mark()
            stack.values.append(self._foreign("builtins frozenset"))
        else:
            return False
        return True

    def _arrange(self, name: str, argument: Any, stack: "_Stack") -> bool:
        """Executes an operation on the stack itself or on the memo; False for all others."""
        if name == "MARK":
            self._taken += OBJECT // 2
            stack.marks.append(len(stack.values))
        elif name == "POP":
            stack.values.pop()
        elif name == "POP_MARK":
            stack.pop_to_mark()
        elif name == "DUP":
            stack.values.append(stack.values[-1])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memoize(stack.memo, len(stack.memo) if name == "MEMOIZE" else argument, stack.values[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.values.append(stack.memo[argument])
        else:
            return False
        return True

    def _make_or_fill(self, name: str, argument: Any, stack: "_Stack") -> bool:
        """Executes an operation that adds to a container, or makes an object; False for all others."""
        if name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = stack.pop(1) if name == "APPEND" else stack.pop_to_mark()
            self._extend(stack.values[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = stack.pop(2) if name == "SETITEM" else stack.pop_to_mark()
            self._update(stack.values[-1], items)
        elif name == "GLOBAL":
            stack.values.append(self._find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = stack.pop(2)
            stack.values.append(self._find(module, attribute))
        elif name == "BINPERSID":
            stack.values.append(self._persistent(*stack.pop(1)))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            function, arguments, *_ = stack.pop(3 if name == "NEWOBJ_EX" else 2)
            stack.values.append(self._make(function, arguments))
        elif name == "BUILD":
            stack.values.pop()  # attributes, such as a state dict's _metadata
        else:
            return False
        return True

    def _foreign(self, name: str) -> Foreign:
        self._taken += OBJECT
        return Foreign(name.replace(" ", "."), name.startswith(MAKE_TENSORS))

    def _find(self, module: Any, attribute: Any) -> Any:
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("a global without a name")
        if max(len(module), len(attribute)) > LONGEST_NAME:
            raise ValueError("a global with an endless name")
        name = f"{module} {attribute}"
        if name in GLOBALS:
            return GLOBALS[name]
        self._taken += len(name)
        found = self._foreign(name)
        self.foreign = self.foreign or found.name
        return found

    def _make(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, np.dtype):  # a storage without numbers, which no tensor can use
            return self._foreign("torch.storage TypedStorage")
        if isinstance(function, Foreign):
            self._taken += OBJECT
            parts = arguments[:MOST_ARGUMENTS] if isinstance(arguments, tuple) else ()
            is_tensor = any(isinstance(part, Tensor | Storage) or getattr(part, "is_tensor", False) for part in parts)
            return Foreign(function.name, function.is_tensor or is_tensor)
        if function is _ordered_dict:
            pairs = arguments[0] if isinstance(arguments, tuple) and len(arguments) == 1 else ()
            self._taken += OBJECT + (4 * ITEM * len(pairs) if isinstance(pairs, list | tuple) else 0)
        made = _call(function, arguments)
        if isinstance(made, Tensor) and function is not _parameter:  # which returns its argument
            self._taken += TENSOR + AXIS * len(made.shape)
        return made

    def _extend(self, target: Any, items: list) -> None:
        if isinstance(target, list):
            self._taken += OBJECT // 2 + CELL * len(items)
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ValueError("items of what is not a list")

    def _update(self, target: Any, items: list) -> None:
        if isinstance(target, Foreign):
            if target.items is None:
                self._taken += OBJECT
                target.items = {}
            target = target.items
        if type(target) is not dict:
            raise ValueError("items of what is not a dict")
        self._taken += ITEM * len(items) // 2 + (0 if target else OBJECT)
        _set_items(target, items)

    def _memoize(self, memo: list, place: int, value: Any) -> None:
        if place < len(memo):
            memo[place] = value
            return
        gap = place - len(memo)  # pickletools.optimize leaves gaps
        if CELL * gap > HEAD:
            raise ValueError("a memo with a gap")
        self._taken += CELL * gap
        memo += [None] * gap
        memo.append(value)

    def _persistent(self, description: Any) -> Storage | Foreign:
        """A reference out of the pickle: to the numbers of a storage, or to the source code of a class."""
        kind, what, *rest = description if isinstance(description, tuple) and len(description) in (4, 5, 6) else (0, 0)
        if kind == "module" and isinstance(what, Foreign):
            return what
        if kind == "storage" and isinstance(what, Foreign):
            return what
        key, _, numel, *view = rest or (None, None, 0)
        if (
            kind != "storage"
            or not isinstance(what, np.dtype)
            or not (isinstance(key, str) and len(key) <= LONGEST_KEY)
        ):
            raise ValueError("a storage without type and key")
        start = view[0][1] if view and isinstance(view[0], tuple) and len(view[0]) == 3 else 0
        if not all(isinstance(number, int) and 0 <= number < LARGEST for number in (numel, start)):
            raise ValueError("a storage with an impossible size")
        self._taken += STORAGE
        self.storages[key] = what
        return Storage(key, what, numel, start)


def _call(function: Any, arguments: Any) -> Any:
    """Calls a function of GLOBALS."""
    if not (callable(function) and isinstance(arguments, tuple) and len(arguments) <= MOST_ARGUMENTS):
        raise ValueError("a call of what is not callable")
    return function(*arguments)


def _set_items(target: dict, items: list) -> None:
    """Puts alternating keys and values into a dict; keys that no tensor could have are dropped.

    Only short strings and small integers are hashed and compared: others can take forever.
    """
    for key, value in zip(items[::2], items[1::2], strict=True):
        if len(key) <= LONGEST_KEY if isinstance(key, str) else isinstance(key, int) and -LARGEST <= key < LARGEST:
            target[key] = value


def _operations(file: Any) -> Iterator[tuple[Any, Any, int | None]]:
    """The operations of a pickle, in order: (opcode, argument, position)."""
    with warnings.catch_warnings():
        # Invalid escapes in strings of protocol 0, which are rejected later.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield from pickletools.genops(file)
