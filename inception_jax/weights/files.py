"""Files of weights: PyTorch's .pth, of which nothing is executed and which needs no PyTorch, and .safetensors."""

import importlib.util
import io
import math
import mmap
import os
import pickletools
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from inception_jax.errors import UserError

EXPECTED = "expected a PyTorch state dict (.pth, .pt) or a .safetensors file"
WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training programs keep the network's tensors
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in the files of PyTorch before 1.6
# What damaged files raise on the way; a UserError passes.
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, RuntimeError, TypeError,
    ValueError, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError,
)  # fmt: skip


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their names, whatever its suffix.

    A .pth file may be of PyTorch's zip format or of the older stream of pickles, and may hold the tensors inside
    {"state_dict": ...} or {"model": ...}; "module." before every name is taken off. Its pickles are decoded by
    `pickletools`, and of the operations and globals in them only those of dicts, lists, numbers, texts and tensors are
    known, each by a function of this module: nothing is imported, nothing of the file's is called.

    Raises:
      UserError: the file is no such file, is damaged, or asks for anything else.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            head, size = file.read(512), file.seek(0, os.SEEK_END)
            if head.startswith(b"PK\x03\x04"):
                tensors = _read_zip(path, file, size)
            elif head.startswith(b"\x80"):
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    tensors = _read_legacy(path, data, size)
            elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
                tensors = _read_safetensors(path)
            else:
                raise UserError(f"{path} {_kind(head)}: {EXPECTED}")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or was cut off ({_one_line(error)}): get it again") from error
    if not all(name.isprintable() for name in tensors):  # errors show names
        raise UserError(f"{path} is damaged: the name of a tensor has unprintable characters")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def write_state_dict(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a .safetensors file or, with PyTorch at hand, a .pth or .pt file; the file appears when it is whole.

    Raises:
      UserError: another suffix, PyTorch is missing, or the file cannot be written.
    """
    path = Path(path).expanduser()
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}  # PyTorch warns of read-only ones

    def write(temporary: str) -> None:
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
        else:
            import torch

            torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, temporary)

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{path}: a file of weights ends in .safetensors, .pth or .pt")
    if path.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise UserError(f"{path}: {path.suffix} files are written by PyTorch, which is missing: choose .safetensors")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            temporary = os.path.join(folder, path.name)
            write(temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _kind(head: bytes) -> str:
    """What a file is that begins so and is no file of weights."""
    text = head.lstrip().lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps the server's answer that the file is not there"
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself (git lfs pull gets it)"
    kinds = {
        b"\x89HDF": "is an HDF5 file, such as Keras's weights",
        b"\x93NUMPY": "is a NumPy array",
        b"\x1f\x8b": "is packed by gzip",
        b"\xff\xd8\xff": "is a JPEG picture",
        b"\x89PNG": "is a PNG picture",
    }
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "is a tar archive"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):  # ir_version, then a text or the graph
        return "is an ONNX model"
    return "is no file of weights"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# The values of a pickle.


class _Storage(NamedTuple):
    """Numbers that lie elsewhere in the file, of which tensors are views; `start` is where the storage's own begin."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0


class _Tensor(NamedTuple):
    """A tensor whose numbers have not been read; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    if not (isinstance(storage, _Storage) and len(shape) == len(strides)):
        raise ValueError("a tensor without storage, shape and strides")
    for number in (offset, *shape, *strides):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"a tensor of shape {shape}, strides {strides} and offset {offset}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data, *_) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _dict(items=()) -> dict:
    result = {}
    _set_items(result, [part for pair in items for part in pair])
    return result


# All that the pickles of a state dict name, by module and name as they stand there.
GLOBALS: Mapping[str, Any] = {
    "collections OrderedDict": _dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch.nn.parameter Parameter": _parameter,
    "torch Size": tuple,
    "torch device": lambda *_: None,
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
}
CONSTANTS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING",
)  # fmt: skip
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTIES = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(path: Path, file: Any) -> Any:
    """The value of the pickle at which the file stands; storages and tensors are noted, not read.

    Raises:
      UserError: it names or does what no state dict needs.
      one of DAMAGE: it cannot be decoded.
    """
    stack, marks, memo = [], [], {}

    def pop_to_mark() -> list:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    def find(name: str) -> Any:
        if name not in GLOBALS:
            name = name.replace(" ", ".") if name.isprintable() else ascii(name)
            raise UserError(
                f"{path} asks for {name}, and of a .pth file only dicts of tensors are read, so that nothing in it is "
                "executed: in PyTorch, save model.state_dict() alone"
            )
        return GLOBALS[name]

    for opcode, argument, _ in pickletools.genops(file):
        name: str = opcode.name
        value: Any = argument
        if name in CONSTANTS:
            stack.append(value)
        elif name in VALUES:
            stack.append(VALUES[name])
        elif name in EMPTIES:
            stack.append(EMPTIES[name]())
        elif name in TUPLES:
            items = stack[-TUPLES[name] :]
            del stack[-TUPLES[name] :]
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = pop_to_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else pop_to_mark()
            _set_items(stack[-1], items)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "GLOBAL":
            stack.append(find(value))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(find(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(_storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(function(*arguments))  # only those in GLOBALS can be called
        elif name == "BUILD":
            stack.pop()  # attributes, such as a state dict's _metadata
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise UserError(
                f"{path} holds a pickle with the operation {name}, which no state dict needs: "
                "in PyTorch, save model.state_dict() alone"
            )
    raise EOFError("a pickle without an end")


def _set_items(target: dict, items: list) -> None:
    """Pairs, one after the other, into a dict. Keys are what state dicts have: others can take forever to hash."""
    if type(target) is not dict or not all(isinstance(key, str | int) for key in items[::2]):
        raise ValueError("a dict with unusual keys")
    target.update(zip(items[::2], items[1::2], strict=True))


def _storage(kind, dtype, key, location, numel, view=None) -> _Storage:
    if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or not isinstance(numel, int):
        raise ValueError("a storage without type, key and size")
    return _Storage(key, dtype, numel, view[1] if view else 0)


def _tensors(path: Path, content: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """The arrays of a state dict; `read` gives the bytes of a storage, which several tensors may share."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    found = {
        name: value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(name, str) and isinstance(value, _Tensor)
    }
    if not found:
        raise UserError(f"{path} holds no dict of tensors, but {type(content).__name__}: {EXPECTED}")
    storages: dict[str, bytes] = {}
    for tensor in found.values():
        if tensor.storage.key not in storages:
            storages[tensor.storage.key] = read(tensor.storage)
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in found.items()}


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
    """A view, never beyond the storage, and never larger than it (a stride of 0 would make it so)."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes, not {storage.numel} of {storage.dtype}")
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    start = storage.start + tensor.offset
    last = start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if last >= storage.numel or math.prod(shape) > storage.numel:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.numel}")
    numbers = np.frombuffer(data, storage.dtype)[start:]
    steps = [stride * storage.dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)


# The three kinds of files.


def _read_zip(path: Path, file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """PyTorch's format since 1.6: an archive of one pickle, ROOT/data.pkl, and the storages, ROOT/data/KEY."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        root = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None
        if root is None or f"{root}constants.pkl" in names:
            kind = "TorchScript program" if root is not None else "zip archive"
            if all(name.endswith(".npy") for name in names):
                kind = "NumPy archive"
            raise UserError(f"{path} is a {kind}, not a state dict: {EXPECTED}")

        def read(name: str) -> bytes:
            member = archive.getinfo(root + name)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:  # PyTorch never packs them
                raise ValueError(f"{name} is packed or too large")
            return archive.read(member)

        if f"{root}byteorder" in names and read("byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine: save it as .safetensors there")
        content = _unpickle(path, io.BytesIO(read("data.pkl")))
        return _tensors(path, content, lambda storage: read(f"data/{storage.key}"))


def _read_legacy(path: Path, data: mmap.mmap, size: int) -> dict[str, np.ndarray]:
    """PyTorch's format before 1.6: five pickles (magic number, version, machine, content, keys), then the storages."""
    if _unpickle(path, data) != LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not PyTorch's: {EXPECTED}")
    _unpickle(path, data)
    if not _unpickle(path, data)["little_endian"]:
        raise UserError(f"{path} was written on a big-endian machine: save it as .safetensors there")
    content = _unpickle(path, data)
    places: dict[str, int] = {}
    # The numbers of elements stand before the elements, whose size only the tensors tell.
    itemsizes = {storage.key: storage.dtype.itemsize for storage in _storages(content)}
    for key in _unpickle(path, data):
        numel = int.from_bytes(data.read(8), "little")
        places[key] = data.tell()
        data.seek(numel * itemsizes[key], os.SEEK_CUR)

    def read(storage: _Storage) -> bytes:
        place = places[storage.key]
        return data[place : place + storage.numel * storage.dtype.itemsize]

    return _tensors(path, content, read)


def _storages(content: Any) -> list[_Storage]:
    """Those of all tensors in dicts, lists and tuples."""
    found, queue, seen = [], [content], set()
    while queue:
        value = queue.pop()
        if isinstance(value, _Tensor):
            found.append(value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            queue += value.values() if isinstance(value, dict) else value
    return found


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if not tensors:
        raise UserError(f"{path} holds no tensor: {EXPECTED}")
    return tensors
