"""Writes networks to files, reads them back and compares them with the original."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import chlo, stablehlo

from inception_jax import files
from inception_jax.data.images import Format, check_batch
from inception_jax.errors import UserError, unknown_name
from inception_jax.experiment import Inputs, dtypes
from inception_jax.models.folding import fold_model, fold_variables
from inception_jax.models.layers import as_outputs
from inception_jax.runs.run import Run
from inception_jax.weights import from_state_dict, read_state_dict, to_state_dict, write_state_dict
from inception_jax.weights.convert import registered_name

FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx"}
INPUTS = ("float32", "uint8")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Largest allowed difference of the logits, relative to the largest: other libraries sum in another order.
TOLERANCES = {"stablehlo": 1e-5, "onnx": 1e-4}
CHECKED_BATCHES = (1, 7)
PRECISION = "highest"  # of products: by default, accelerators round float32 factors to TF32 or bfloat16
VERSION = 1  # of the JSON format
# Custom calls that a StableHLO file may make: shape checks, placement, random bits. Others that come with JAX include
# some that compile code passed to them.
CALLS = frozenset({"shape_assertion", "Sharding", "cu_threefry2x32_ffi", "hip_threefry2x32_ffi"})


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network; a `predict.Classifier`.

    Attributes:
      path: the file's path.
      about: the JSON beside it.
      form: how a picture of any size is converted to an input image.
      engine: computes logits of the network's inputs instead of JAX or ONNX Runtime, see `engines.use`.
    """

    path: Path
    about: dict[str, Any]
    form: Format
    _call: Callable[[np.ndarray], np.ndarray]
    engine: Callable[[np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"Exported({str(self.path)!r}: {self.about['network']}, {len(self.class_names)} classes)"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.about["class_names"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Maps uint8 images (batch, height, width, channels) to float32 logits (batch, classes).

        Raises:
          UserError: the images do not fit the network; the message says what to do.
        """
        images = check_batch(images, tuple(self.about["input"]["shape"][1:]))
        call = self.engine or self._call
        if self.about["input"]["dtype"] == "uint8":
            return call(np.ascontiguousarray(images))
        return call(np.asarray(_normalizer(self.about)(jnp.asarray(images))))

    def read(self) -> bytes:
        """Reads the file's content, which must be unchanged.

        Raises:
          UserError: it cannot be read, or is damaged.
        """
        return _read_content(self.path, self.path, self.about)


def export_run(
    run: Run, path: str | Path, format: str, *, input: str = "float32", platforms: Sequence[str] = ("cpu", "cuda")
) -> tuple[Exported, float]:
    """Exports a run's network with batch norm folded, in float32 and for any batch size, with a JSON file beside it.

    The file is read back, and its logits on random images are compared with the run's own or, if the run computes in
    another type, with those of its network in float32. If they differ, the file is removed and any previous one is
    kept. Products have full precision on every platform.

    Args:
      path: the file's path; the JSON file has the same path with ".json" appended.
      format: "stablehlo", for JAX and other compilers; "onnx", which needs the packages onnx and onnxruntime.
      input: "float32": normalized images (batch, height, width, channels); "uint8": images as they are stored, which
        the network normalizes.
      platforms: the platforms that a StableHLO file is for.

    Returns:
      the network as read back, and the largest difference of its logits, relative to the largest logit.

    Raises:
      UserError: an argument is not allowed, the network cannot be written in that format, a package is missing, the
        file cannot be written, or its logits differ.
    """
    for name, value, allowed in (("format", format, FORMATS), ("input", input, INPUTS)):
        if value not in allowed:
            raise unknown_name(name, value, allowed)
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    path = files.expand(path)
    beside = _beside(path)
    network, variables = _inference(run, input)
    shape = run.inputs.image_shape
    if format == "stablehlo":
        (batch,) = jax_export.symbolic_shape("batch")
        argument = jax.ShapeDtypeStruct((batch, *shape), input)
        constants = jax.jit(partial(network, variables))
        with jax.default_matmul_precision(PRECISION):
            content = bytes(jax_export.export(constants, platforms=tuple(platforms))(argument).serialize())
    else:
        from inception_jax.trained.export.onnx_graph import to_onnx

        content = to_onnx(network, variables, shape, input)
    about = _about(run, format, input, tuple(platforms) if format == "stablehlo" else None)
    about["sha256"] = hashlib.sha256(content).hexdigest()
    with files.whole_files([path, beside]) as (new, new_beside):
        new.write_bytes(content)
        new_beside.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        exported = _read(path, new, new_beside)
        difference = _difference(exported, run, network, variables, input)
        if not difference <= TOLERANCES[format]:
            raise UserError(
                f"the logits of {path} differ from the network's by {difference:.1e} of the largest, more than "
                f"{TOLERANCES[format]:g}: it was removed"
            )
    return exported, difference


def export_weights(run: Run, path: str | Path, format: str) -> dict[str, np.ndarray]:
    """Writes a run's weights under another library's names, see `weights.to_state_dict` and `write_state_dict`.

    The file is read back. Unless it reproduces every value of the run's network bit for bit, it is removed and any
    previous file is kept.

    Args:
      path: the file's path, which ends in .safetensors, .pth or .pt.
      format: "torchvision", "timm" or "cadene".

    Returns:
      the tensors by name.

    Raises:
      UserError: the library has no such network, the file cannot be written, or what was read back differs.
    """
    path = files.expand(path)
    tensors = to_state_dict(run.model, run.variables, format)

    def check(new: Path) -> None:
        again = from_state_dict(run.model, read_state_dict(new), format, image_shape=run.inputs.image_shape)
        found: dict[Any, Any] = flatten_dict(again)
        kept: dict[Any, Any] = flatten_dict({name: run.variables.get(name, {}) for name in ("params", "batch_stats")})
        differing = [place for place in found.keys() | kept.keys() if not _same(found.get(place), kept.get(place))]
        if differing:
            raise UserError(
                f"{len(differing)} of the arrays in {path} differ from the run's, such as {'/'.join(min(differing))}: "
                "it was removed"
            )

    write_state_dict(path, tensors, check)
    return tensors


def _same(one: Any, other: Any) -> bool:
    return one is not None and other is not None and np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


def load_exported(path: str | Path) -> Exported:
    """Loads the network of a .stablehlo or .onnx file with its JSON beside it. Nothing but the network is executed.

    Raises:
      UserError: one of the two is missing or damaged, or they do not belong together; or a package is missing.
    """
    path = files.expand(path)
    return _read(path, path, _beside(path))


def _read(path: Path, file: Path, beside: Path) -> Exported:
    """Loads the network from two files that are at `path` or will be moved there."""
    about = _read_about(path, beside)
    content = _read_content(path, file, about)
    load = _load_stablehlo if about["format"] == "stablehlo" else _load_onnx
    return Exported(path, about, Format(**about["preprocessing"]), load(path, content))


def _read_content(path: Path, file: Path, about: dict[str, Any]) -> bytes:
    """The bytes of a file that is at `path` or will be moved there."""
    try:
        content = files.regular_file(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise UserError(f"{path} is damaged, or {_beside(path).name} belongs to another file")
    return content


def run_as_onnx(run: Run, input: str = "uint8") -> bytes:
    """A run's network in ONNX as `export_run` writes it, but in memory and without a comparison of its logits.

    Raises:
      UserError: it cannot be written as ONNX, or the package onnx is missing.
    """
    from inception_jax.trained.export.onnx_graph import to_onnx

    network, variables = _inference(run, input)
    return to_onnx(network, variables, run.inputs.image_shape, input)


def _inference(run: Run, input: str) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """A function (variables, images) -> logits in float32, and its variables."""
    model = fold_model(run.model)
    # A network from outside the package may lack the fields for data types.
    known = {field.name for field in dataclasses.fields(model)} & {"dtype", "param_dtype"}
    types: dict[str, Any] = dict.fromkeys(known, jnp.float32)
    model = model.clone(**types)
    variables = jax.jit(partial(fold_variables, run.model))(run.variables)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    normalize = run.inputs.normalizer(run.config.data.normalization, jnp.float32)

    def network(variables, images):
        images = normalize(images) if input == "uint8" else images
        return as_outputs(model.apply(variables, images, train=False)).logits

    return network, variables


def _about(run: Run, format: str, input: str, platforms: tuple[str, ...] | None) -> dict[str, Any]:
    height, width, channels = run.inputs.image_shape
    about = {
        "version": VERSION,
        "format": format,
        "network": registered_name(run.model),
        "step": run.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "input": {"name": "images", "shape": ["batch", height, width, channels], "layout": "NHWC", "dtype": input},
        "output": {"name": "logits", "shape": ["batch", len(run.class_names)], "dtype": "float32"},
        "preprocessing": dataclasses.asdict(run.form),
        "normalization": {
            "name": run.config.data.normalization,
            "mean": list(run.inputs.mean),
            "std": list(run.inputs.std),
            "inside": input == "uint8",
        },
        "class_names": list(run.class_names),
        "versions": {package: version(package) for package in ("inception-jax", "jax", "flax")},
    }
    return about | ({"platforms": list(platforms)} if platforms else {})


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_about(path: Path, beside: Path) -> dict[str, Any]:
    """Reads the JSON beside a file, and checks every field that is used."""
    try:
        about = files.parse_json(beside.read_bytes())
        inputs, normalization = about["input"], about["normalization"]
        names = [about["class_names"], about["sha256"], about["preprocessing"], normalization["name"]]
        if about["version"] != VERSION or about["format"] not in FORMATS or inputs["dtype"] not in INPUTS:
            raise ValueError("it is of another version of this package")
        if not all(isinstance(name, str) for name in names[0]):
            raise ValueError("its classes' names are no texts")
        Format(**names[2])
        _normalizer(about)
    except OSError as error:
        raise UserError(f"cannot read {beside}, which belongs to {path.name}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{beside} does not describe an exported network: {error!r}") from error
    return about


def _normalizer(about: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    given = about["normalization"]
    shape = tuple(about["input"]["shape"][1:])
    inputs = Inputs(tuple(about["class_names"]), shape, tuple(given["mean"]), tuple(given["std"]))
    return inputs.normalizer(given["name"], jnp.float32)


def _load_stablehlo(path: Path, content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    try:
        exported = jax_export.deserialize(bytearray(content))
    except Exception as error:  # correct checksum, but written by a later JAX
        raise UserError(f"this JAX ({jax.__version__}) cannot read {path}: {error}") from error
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise UserError(f"{path} is for {' and '.join(exported.platforms)}, not for {platform}: export it anew")
    strange = _calls(exported.mlir_module_serialized) - CALLS
    if strange:
        raise UserError(f"{path} calls {', '.join(sorted(strange))}, which is no operation of a network")
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


def _difference(exported: Exported, run: Run, network: Callable, variables: Any, input: str) -> float:
    """The largest difference of the logits from the original, relative to the largest logit."""
    compiled, random = jax.jit(network), np.random.default_rng(0)
    in_float32 = jnp.dtype(dtypes(run.config.compute_dtype)[0]) == jnp.float32
    largest = 0.0
    for number in CHECKED_BATCHES:
        images = random.integers(0, 256, (number, *run.inputs.image_shape), np.uint8)
        with jax.default_matmul_precision(PRECISION):
            if in_float32:
                expected = run.logits(images)
            else:
                expected = np.asarray(compiled(variables, images if input == "uint8" else run.normalize(images)))
        found = exported.logits(images)
        if found.shape != expected.shape:
            raise UserError(f"{exported.path} gives logits of shape {found.shape}, not {expected.shape}")
        largest = max(largest, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)))
    return largest
