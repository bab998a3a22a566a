"""Writes networks to files, and compares what is read back with the original."""

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

from inception_jax import files
from inception_jax.errors import UserError, unknown_name
from inception_jax.experiment import dtypes
from inception_jax.models.folding import fold_model, fold_variables
from inception_jax.models.layers import as_outputs
from inception_jax.runs.run import Run
from inception_jax.trained.export.exported import FORMATS, INPUTS, VERSION, Exported, beside, read_exported
from inception_jax.weights import from_state_dict, read_state_dict, to_state_dict, write_state_dict
from inception_jax.weights.convert import registered_name

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Largest allowed difference of the logits, relative to the largest: other libraries sum in another order.
TOLERANCES = {"stablehlo": 1e-5, "onnx": 1e-4}
CHECKED_BATCHES = (1, 7)
PRECISION = "highest"  # of products: by default, accelerators round float32 factors to TF32 or bfloat16


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
    with files.whole_files([path, beside(path)]) as (new, new_beside):
        new.write_bytes(content)
        new_beside.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        exported = read_exported(path, new, new_beside)
        difference = _difference(exported, run, network, variables, input)
        if not difference <= TOLERANCES[format]:
            raise UserError(
                f"{path} was removed: the relative difference of its logits is {difference:.1e}, but at most "
                f"{TOLERANCES[format]:g} is allowed"
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
                f"{path} was removed: {len(differing)} of its arrays differ from the run's, such as "
                f"{'/'.join(min(differing))}"
            )

    write_state_dict(path, tensors, check)
    return tensors


def _same(one: Any, other: Any) -> bool:
    return one is not None and other is not None and np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


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
    normalize = run.transform.normalizer(jnp.float32)

    def network(variables, images):
        images = normalize(images) if input == "uint8" else images
        return as_outputs(model.apply(variables, images, train=False)).logits

    return network, variables


def _about(run: Run, format: str, input: str, platforms: tuple[str, ...] | None) -> dict[str, Any]:
    transform = run.transform
    height, width, channels = transform.image_shape
    about = {
        "version": VERSION,
        "format": format,
        "network": registered_name(run.model),
        "step": run.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "input": {"name": "images", "shape": ["batch", height, width, channels], "layout": "NHWC", "dtype": input},
        "output": {"name": "logits", "shape": ["batch", len(run.class_names)], "dtype": "float32"},
        "preprocessing": dataclasses.asdict(transform.form),
        "normalization": {
            "name": transform.normalization,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "inside": input == "uint8",
        },
        "class_names": list(run.class_names),
        "versions": {package: version(package) for package in ("inception-jax", "jax", "flax")},
    }
    return about | ({"platforms": list(platforms)} if platforms else {})


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
            raise UserError(f"{exported.path} returns logits of shape {found.shape}, expected {expected.shape}")
        largest = max(largest, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)))
    return largest
