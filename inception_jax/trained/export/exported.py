"""Networks in files that were exported, read back."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import chlo, stablehlo

from inception_jax import files
from inception_jax.data.images import Format
from inception_jax.data.transform import Transform
from inception_jax.data.words import shown_names
from inception_jax.errors import UserError
from inception_jax.inference.predictor import Predictor

FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx"}
INPUTS = ("float32", "uint8")
VERSION = 1  # of the JSON format
# Custom calls that a StableHLO file may make: shape checks, placement, random bits. Others that come with JAX include
# some that compile code passed to them.
CALLS = frozenset({"shape_assertion", "Sharding", "cu_threefry2x32_ffi", "hip_threefry2x32_ffi"})


@dataclasses.dataclass(frozen=True)
class Exported(Predictor):
    """An exported network.

    Attributes:
      path: the file's path.
      about: the JSON beside it.
      engine: computes logits of the network's inputs instead of JAX or ONNX Runtime, see `engines.use`.
    """

    path: Path
    about: dict[str, Any]
    _call: Callable[[np.ndarray], np.ndarray]
    engine: Callable[[np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"Exported({str(self.path)!r}: {self.about['network']}, {len(self.class_names)} classes)"

    @property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] (never assigned)
        """Class names in the order of the logits."""
        return shown_names(self.about["class_names"])

    @property
    def transform(self) -> Transform:
        return _transform(self.about)

    def compute(self, images: np.ndarray) -> np.ndarray:
        call = self.engine or self._call
        if self.about["input"]["dtype"] == "uint8":
            return call(np.ascontiguousarray(images))
        return call(np.asarray(self._normalized(images)))

    def read(self) -> bytes:
        """Reads the file's content, which must be unchanged.

        Raises:
          UserError: it cannot be read, or is damaged.
        """
        return _read_content(self.path, self.path, self.about)


def load_exported(path: str | Path) -> Exported:
    """Loads the network of a .stablehlo or .onnx file with its JSON beside it. Nothing but the network is executed.

    Raises:
      UserError: one of the two is missing or damaged, or they do not belong together; or a package is missing.
    """
    path = files.expand(path)
    return read_exported(path, path, beside(path))


def read_exported(path: Path, file: Path, description: Path) -> Exported:
    """Loads the network from two files, its own and the JSON, that are at `path` and beside it or will be moved there.

    Raises:
      UserError: as `load_exported`.
    """
    about = _read_about(path, description)
    content = _read_content(path, file, about)
    load = _load_stablehlo if about["format"] == "stablehlo" else _load_onnx
    return Exported(path, about, load(path, content))


def _read_content(path: Path, file: Path, about: dict[str, Any]) -> bytes:
    """The bytes of a file that is at `path` or will be moved there."""
    try:
        content = files.regular_file(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise UserError(f"{path} is damaged, or {beside(path).name} belongs to another file")
    return content


def beside(path: Path) -> Path:
    """The path of the JSON that describes an exported file."""
    return path.with_name(f"{path.name}.json")


def _read_about(path: Path, description: Path) -> dict[str, Any]:
    """Reads the JSON beside a file, and checks every field that is used."""
    try:
        about = files.parse_json(description.read_bytes())
        names = [about["sha256"], *about["class_names"]]
        known = about["format"] in FORMATS and about["input"]["dtype"] in INPUTS
        if about["version"] != VERSION or not known:
            raise ValueError("it was written by another version of this package")
        if not all(isinstance(name, str) for name in names):
            raise ValueError("its class names must be strings")
        _transform(about).normalizer(jnp.float32)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {description}, which belongs to {path.name}: {reason}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{description} does not describe an exported network: {error!r}") from error
    return about


def _transform(about: dict[str, Any]) -> Transform:
    form, given = Format(**about["preprocessing"]), about["normalization"]
    shape, how = tuple(about["input"]["shape"][1:]), (form.resize, form.fit, form.crop_share, given["name"])
    return Transform(shape, *how, tuple(given["mean"]), tuple(given["std"]), pad=form.pad)


def _load_stablehlo(path: Path, content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    try:
        exported = jax_export.deserialize(bytearray(content))
    except Exception as error:  # correct checksum, but written by a later JAX
        raise UserError(f"this JAX ({jax.__version__}) cannot read {path}: {error}") from error
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise UserError(
            f"{path} is for {' and '.join(exported.platforms)}, not for {platform}: export it again with --platforms"
        )
    strange = _calls(exported.mlir_module_serialized) - CALLS
    if strange:
        raise UserError(f"{path} calls {', '.join(sorted(strange))}, which is not allowed in a network")
    call = jax.jit(exported.call)
    return lambda images: np.asarray(call(images), np.float32)


def _calls(module: bytes) -> set[str]:
    """The names of all custom calls of a serialized module."""
    found = set()

    def look(operation: Any) -> ir.WalkResult:
        if operation.name == "stablehlo.custom_call":
            found.add(operation.attributes["call_target_name"].value)
        return ir.WalkResult.ADVANCE

    with ir.Context() as context:
        for dialect in (stablehlo, chlo):
            dialect.register_dialect(context)
        stablehlo.deserialize_portable_artifact(context, module).operation.walk(look)
    return found


def _load_onnx(path: Path, content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UserError(f"{path} needs onnxruntime: pip install 'inception-jax[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(content, providers=onnxruntime.get_available_providers())
    except Exception as error:  # correct checksum, but with operators that an older version does not know
        raise UserError(f"this onnxruntime ({onnxruntime.__version__}) cannot read {path}: {error}") from error
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])
