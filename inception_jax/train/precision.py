"""The data type that a network computes in if the config does not specify it, and JAX's 64-bit types."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import jaxprs_in_params

from inception_jax import ops
from inception_jax.config import Config
from inception_jax.experiment import build_model
from inception_jax.runs.folder import open_checkpoints, read_config

# Mean per convolution in a step; below it, bfloat16 is slower even on a CPU with bfloat16 units: the operations around
# oneDNN's take longer than is saved. GoogLeNet, 64 images: 0.77 times float32's speed with 36 million (32 pixels), 1.27
# with 145 million (64 pixels).
LEAST_MULTIPLY_ADDS = 125_000_000


def choose_compute_dtype(
    config: Config, folder: Path, num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[Config, str]:
    """The config with its compute_dtype decided, and the reason in a few words; "" if the config specifies it.

    A run continues in the type that it began in; runs of earlier versions have kept "auto", with its old meaning, see
    `experiment.dtypes`. A new run uses bfloat16 on accelerators, and, from JAX 0.12 on, on CPUs with bfloat16 units
    (avx512_bf16 or amx_bf16) if its convolutions are large enough to benefit; otherwise float32.

    Args:
      folder: of the run.
      image_shape: (height, width, channels).
    """
    if config.compute_dtype != "auto":
        return config, ""
    if (folder / "config.json").is_file():
        dtype, why = read_config(folder / "config.json").compute_dtype, "as at the start of the run"
    else:
        dtype, why = _fastest(config, num_classes, image_shape)
    config = copy.deepcopy(config)
    config.compute_dtype = dtype
    return config, why


def _fastest(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[str, str]:
    if jax.default_backend() != "cpu":
        return "bfloat16", "fastest on accelerators"
    if jax.local_device_count() > 1 or not ops.fast_bfloat16():
        return "float32", "this JAX or processor is slow in bfloat16"
    if multiply_adds_of_convolutions(config, num_classes, image_shape) < LEAST_MULTIPLY_ADDS:
        return "float32", "the convolutions are too small to gain from bfloat16"
    return "bfloat16", "faster on this processor; compiled at every start"


def multiply_adds_of_convolutions(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> float:
    """For the forward pass of a micro-batch, the mean over the network's convolutions; 0 if it has none."""
    model = build_model(config, num_classes)
    images = jnp.zeros((1, *image_shape))
    jaxpr = jax.make_jaxpr(partial(model.init, train=False))(jax.random.key(0), images)
    convolutions = (each for each in equations(jaxpr.jaxpr) if each.primitive.name == "conv_general_dilated")
    counts = [_multiply_adds(convolution) for convolution in convolutions]
    batch = config.batch_size // config.accumulation_steps
    return batch * float(np.mean(counts)) if counts else 0.0


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a traced function, and of the functions, branches and loops within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def _multiply_adds(equation: Any) -> float:
    kernel, maps = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return float(np.prod(maps, dtype=float) * np.prod(kernel, dtype=float) / out_features)


@contextmanager
def types_for(config: Config, folder: Path) -> Iterator[None]:
    """While a run trains, 64-bit types are on if it computes in float64, else off; afterwards they are as before.

    JAX's switch is one for the process, and `experiment.dtypes` leaves it on. With it a run in float32 would draw other
    random numbers and save scalars in float64, and another process could not continue it. A run that began so with an
    earlier version goes on so, where the switch is on.

    Args:
      folder: of the run.
    """
    with switched(config.compute_dtype == "float64" or (_x64() and _began_with_x64(folder))):
        yield


@contextmanager
def switched(x64: bool) -> Iterator[None]:
    """JAX's 64-bit types on or off, in all threads, and afterwards as before."""
    before = _x64()
    jax.config.update("jax_enable_x64", x64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _x64() -> bool:
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]


def _began_with_x64(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    with open_checkpoints(folder, read_config(folder / "config.json"), read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return step is not None and checkpoints.manifest(step).leaves["plateau/scale"]["dtype"] == "float64"
