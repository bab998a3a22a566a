"""Weights files: .safetensors, and PyTorch's .pth, read without PyTorch and without executing anything in it."""

import importlib.util
import io
import logging
import math
import mmap
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from inception_jax import files
from inception_jax.errors import UserError
from inception_jax.files import parse_json, regular_file, whole_file
from inception_jax.text import listed, printable
from inception_jax.weights.pickles import Foreign, Reader, Storage, Tensor

logger = logging.getLogger(__name__)

EXPECTED = "expected a PyTorch state dict (.pth, .pt) or a .safetensors file"
# Keys under which training programs keep the network's tensors, the likeliest first; averaged weights come last.
USUAL = (
    "state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params",
    "parameters", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema",
)  # fmt: skip
DEEPEST = 8  # levels of nested dicts that are searched
MOST_PARTS, MOST_DICTS = 1000, 10_000  # dicts and lists that are searched: in each, and in all; each takes 300 bytes
LISTED = 10  # dicts listed in an error message
# Prefixes of names that DataParallel, torch.compile, FSDP and common wrapper classes add.
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "backbone.", "net.", "network.", "encoder.")
WRAPPED = re.compile(r"(?:\.(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module))+\.")
NOT_READ = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (on PyTorch's meta device)",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor on another device",
    "torch._C._set_tensor_metadata": "a tensor that is conjugated or negated as it is read",
}
SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
    "C64": np.dtype("<c8"), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in files from PyTorch before 1.6
# What reading a damaged file can raise, besides UserError, which passes through.
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, RuntimeError, TypeError,
    ValueError, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError,
)  # fmt: skip


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name, whatever its suffix.

    A .pth file may have PyTorch's zip format or the older stream of pickles. The network's tensors may be nested in
    other dicts, such as {"state_dict": ...} or {"model": ...}, next to anything else. If there are several dicts of
    tensors, one with a usual name is taken, and a warning says which. Prefixes common to all names, such as "module."
    and "_orig_mod.", are removed. Nothing is imported, and no code from the file is called (see `pickles`).

    Memory: that of the numbers, which are read once, and at most `pickles.BYTES_PER_BYTE` bytes for each byte of the
    file's pickles.

    Raises:
      UserError: the file is not a weights file or is damaged, it holds no dict of tensors or several without a usual
        name, or a tensor is not dense or not real.
    """
    path = files.expand(path)
    try:
        with regular_file(path).open("rb") as file:
            head, size = file.read(512), file.seek(0, os.SEEK_END)
            if head.startswith(b"PK\x03\x04"):
                tensors = _read_zip(path, file, size)
            elif head.startswith(b"\x80"):
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    tensors = _read_legacy(path, data)
            elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
                tensors = _read_safetensors(path, file)
            else:
                raise UserError(f"{path} {_kind(head)}: {EXPECTED}")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or truncated ({_one_line(error)}): get it again") from error
    for name, value in tensors.items():
        if not name.isprintable():  # errors show names
            raise UserError(f"{path} is damaged: the name of a tensor has unprintable characters")
        if value.dtype.kind == "c":
            raise UserError(f"{path}: {name} has complex numbers ({value.dtype}), but weights are real")
    return _without_wrappers(tensors)


def write_state_dict(
    path: str | Path, tensors: Mapping[str, np.ndarray], check: Callable[[Path], None] = lambda new: None
) -> None:
    """Writes a .safetensors file or, if PyTorch is installed, a .pth or .pt file; it appears once it is complete.

    Args:
      check: called with the new file before it is moved to `path`; may raise.

    Raises:
      UserError: the suffix is another one, or PyTorch is missing.
      WriteError: the file cannot be written.
    """
    path = files.expand(path)
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}  # PyTorch warns about read-only ones

    def content() -> bytes:  # in memory: both libraries hide a full disk behind errors of their own
        if path.suffix == ".safetensors":
            return safetensors.numpy.save(arrays, metadata={"format": "pt"})
        import torch

        file = io.BytesIO()
        torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, file)
        return file.getvalue()

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{path}: the name of a weights file must end in .safetensors, .pth or .pt")
    if path.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{path}: {path.suffix} files are written by PyTorch, which is not installed: choose .safetensors"
        )
    with whole_file(path) as new:
        new.write_bytes(content())
        check(new)


def _kind(head: bytes) -> str:
    """Says what a file with this beginning is, if it is not a weights file."""
    text = head.lstrip().lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps a server's error page"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull gets it)"
    kinds = {
        b"\x89HDF": "is an HDF5 file, such as Keras's weights",
        b"\x93NUMPY": "is a NumPy array",
        b"\x1f\x8b": "is compressed with gzip",
        b"\xff\xd8\xff": "is a JPEG picture",
        b"\x89PNG": "is a PNG picture",
    }
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "is a tar archive"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):  # ir_version, then a string or the graph
        return "is an ONNX model"
    return "is not a weights file"


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


# Where the tensors are.


def _tensors(path: Path, content: Any, reader: Reader, read: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """The arrays of the state dict in a pickle; `read` returns the bytes of a storage, which tensors may share."""
    found = _state_dict(path, content, reader)
    for name, value in found.items():
        if isinstance(value, Foreign):
            kind = NOT_READ.get(value.name, f"a tensor that only {printable(value.name)} can create")
            raise UserError(
                f"{path}: {printable(name)} is {kind}, but only dense tensors of real numbers are read: save it as one"
            )
    storages: dict[str, bytes] = {}
    for tensor in found.values():
        if tensor.storage.key not in storages:
            storages[tensor.storage.key] = read(tensor.storage)
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in found.items()}


def _state_dict(path: Path, content: Any, reader: Reader) -> dict[str, Any]:
    """The network's dict of tensors, including foreign ones.

    Raises:
      UserError: there is none, or there are several and none has a usual name.
    """
    candidates = [_Candidate(where, tensors) for where, tensors in _dicts_of_tensors(content)]
    if not candidates and reader.foreign:
        raise _asks_for(path, reader.foreign)
    if not candidates:
        raise UserError(f"{path} does not contain a dict of tensors, but {type(content).__name__}: {EXPECTED}")
    candidates.sort(key=_Candidate.rank)
    first, *others = [candidate for candidate in candidates if candidate.is_network == candidates[0].is_network]
    if any(other.rank() == first.rank() for other in others):
        raise UserError(
            f"{path} contains several dicts of tensors, and their names do not tell which one is the network's: "
            f"{listed([first, *others], LISTED)}: in PyTorch, save only the one that you want"
        )
    if others:
        logger.warning("%s: reading %s; it also contains %s", path, first, listed(others, LISTED))
    return first.tensors


def _asks_for(path: Path, name: str) -> UserError:
    return UserError(
        f"{path} needs {printable(name)}, but only dicts of tensors are read from a .pth file, so that nothing in it "
        "is executed: in PyTorch, save only model.state_dict()"
    )


class _Candidate(NamedTuple):
    """A dict with tensors, and the keys that lead to it."""

    where: tuple[str | int, ...]
    tensors: dict[str, Any]

    def __str__(self) -> str:
        name = printable(".".join(str(key)[:50] for key in self.where)) or "the whole file"
        return f"{name} ({len(self.tensors)} tensor{'s' * (len(self.tensors) != 1)})"

    @property
    def is_network(self) -> bool:
        return any(
            name.rpartition(".")[2] in ("weight", "bias", "running_mean") and isinstance(value, Tensor)
            for name, value in self.tensors.items()
        )

    def rank(self) -> tuple[int, ...]:
        """Sort key, the likeliest first: usual names, nearest to the top; the top itself; all others alike."""
        last = self.where[-1] if self.where else None
        if last in USUAL:
            return (not self.is_network, 0, len(self.where), USUAL.index(last))
        return (not self.is_network, 2 if self.where else 1)


def _dicts_of_tensors(content: Any) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """The tensors of each dict that has any, and the keys that lead to it; optimizer states are left out."""
    queue: deque[tuple[tuple[str | int, ...], Any]] = deque([((), content)])
    seen = {id(content)}
    while queue:
        where, value = queue.popleft()
        value = value.items if isinstance(value, Foreign) else value
        if not isinstance(value, dict | list | tuple):
            continue
        if isinstance(value, dict):
            if "state" in value and ("param_groups" in value or "hypers" in value):  # PyTorch's optimizers and fastai's
                continue
            tensors = {name: item for name, item in value.items() if isinstance(name, str) and _is_tensor(item)}
            if tensors:
                yield where, tensors
        most = min(len(seen) + MOST_PARTS, MOST_DICTS) if len(where) < DEEPEST else 0
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(part, dict | list | tuple | Foreign) and id(part) not in seen and len(seen) < most:
                seen.add(id(part))
                queue.append(((*where, key), part))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Foreign) and value.is_tensor)


def _array(tensor: Tensor, data: bytes) -> np.ndarray:
    """A view that never reaches beyond its storage and is never larger (as it could be with a stride of 0)."""
    storage, shape, strides, itemsize = tensor.storage, tensor.shape, tensor.strides, tensor.dtype.itemsize
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes, not {storage.numel} of {storage.dtype}")
    if math.prod(shape) == 0:
        return np.zeros(shape, tensor.dtype)
    numel = len(data) // itemsize
    start = storage.start + tensor.offset
    last = start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if last >= numel or math.prod(shape) > numel:
        raise ValueError(f"a tensor of shape {shape} extends beyond its storage of {numel}")
    return np.ndarray(shape, tensor.dtype, data, start * itemsize, [stride * itemsize for stride in strides])


def _without_wrappers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes what wrappers add to names, in any order and number, as in "_orig_mod.module.conv1.weight".

    A prefix is removed if all names have it except scalars of the wrapper itself, such as `n_averaged`, which are
    dropped. Within names it is always removed, since a submodule was wrapped ("features.module.0.weight").
    """
    while True:
        whole = [name for name, value in tensors.items() if value.ndim] or list(tensors)
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in whole)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    names = {name: WRAPPED.sub(".", name) for name in tensors}
    if len(set(names.values())) < len(names):
        return tensors
    return {names[name]: value for name, value in tensors.items()}


# The three file formats.


def _read_zip(path: Path, file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """PyTorch's format since 1.6: an archive with one pickle, ROOT/data.pkl, and the storages, ROOT/data/KEY."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        root = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None
        if root is None or f"{root}constants.pkl" in names:
            kind = "TorchScript program" if root is not None else "zip archive"
            if all(name.endswith(".npy") for name in names):
                kind = "NumPy archive"
            raise UserError(f"{path} is a {kind}, not a state dict: {EXPECTED}")
        members = archive.infolist()
        total = sum(max(member.file_size, member.compress_size) for member in members)  # too large if some overlap

        def read(name: str) -> bytes:
            member = archive.getinfo(root + name)
            if member.compress_type != zipfile.ZIP_STORED or total > size:  # PyTorch never compresses them
                raise ValueError(f"{name} is compressed or too large")
            return archive.read(member)

        if f"{root}byteorder" in names and read("byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine: save it as .safetensors there")
        reader = Reader(path, io.BytesIO(read("data.pkl")))
        return _tensors(path, reader.read(), reader, lambda storage: read(f"data/{storage.key}"))


def _read_legacy(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    """PyTorch's format before 1.6: five pickles (magic number, version, machine, content, keys), then the storages."""
    reader = Reader(path, data)
    if reader.read() != LEGACY_MAGIC:
        if reader.foreign:
            raise _asks_for(path, reader.foreign)
        raise UserError(f"{path} is a pickle, but not PyTorch's: {EXPECTED}")
    reader.read()
    if not reader.read()["little_endian"]:
        raise UserError(f"{path} was written on a big-endian machine: save it as .safetensors there")
    content = reader.read()
    places: dict[str, tuple[int, int]] = {}
    for key in reader.read():
        # The number of elements precedes the elements, whose size only the tensors tell.
        length = int.from_bytes(data.read(8), "little") * reader.storages[key].itemsize
        places[key] = data.tell(), length
        data.seek(length, os.SEEK_CUR)

    def read(storage: Storage) -> bytes:
        place, length = places[storage.key]  # places do not overlap, so all together are no larger than the file
        return data[place : place + length]

    return _tensors(path, content, reader, read)


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework="numpy"):
        pass  # checks that the header is complete and that tensors do not overlap in the file
    file.seek(0)
    header: dict[str, Any] = parse_json(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    if not header:
        raise UserError(f"{path} contains no tensors: {EXPECTED}")
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{path}: {printable(name)} has type {entry['dtype']}, which is not supported; supported: "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )
    data = file.read()
    return {
        name: np.frombuffer(
            data, SAFETENSORS_DTYPES[entry["dtype"]], math.prod(entry["shape"]), entry["data_offsets"][0]
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
