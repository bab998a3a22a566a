"""The cost of a network as counted by XLA, and its measured latency."""

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.inspection.table import image_shape_of
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.models.layers import BatchNorm

LATENCY_SECONDS = 2.0  # of timed calls, at most
LATENCY_CALLS = 50


def xla_multiply_adds(model: nn.Module, image_size: int | Sequence[int] | None = None, channels: int = 3) -> int:
    """Half the floating-point operations that XLA counts in the lowered program, for one image; nothing is compiled.

    XLA's count is independent of the layers, so it checks `layer_table`. It also includes biases, activations and
    pooling. Batch norm is left out, as it is folded into the kernels. XLA does not count a convolution's products with
    padding, so the maps are padded first and then convolved without padding.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape_of(model, image_size, channels)), np.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def run(variables, images):
        with nn.intercept_methods(_make_countable):
            return model.apply(variables, images, train=False)

    with jax.default_device(jax.devices("cpu")[0]):  # on GPUs, JAX has no cost analysis of lowered programs
        # Lowered for a GPU, with each layer's own operations; on a CPU, others replace them and count differently.
        lowered = jax.jit(run).trace(variables, images).lower(lowering_platforms=("cuda",))
        analysis: Any = lowered.cost_analysis()
    return round(analysis["flops"] / 2)


def _make_countable(next_fun, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.BatchNorm | BatchNorm) and context.method_name == "__call__":
        return nn.relu(args[0]) if getattr(module, "relu", False) else args[0]
    # A 1x1 kernel needs no padding, and a module may compute such convolutions differently (see models.layers).
    padded = isinstance(module, nn.Conv) and module.conv_general_dilated is not _conv_of_padded
    if not padded or np.prod(module.kernel_size) == 1:
        return next_fun(*args, **kwargs)
    conv = module.clone(conv_general_dilated=_conv_of_padded, parent=None, name=None)
    return conv.apply(module.variables, *args, **kwargs)


def _conv_of_padded(lhs, rhs, window_strides, padding, *, rhs_dilation=None, **options):
    """`lax.conv_general_dilated` of channels-last maps, with padding as a separate step."""
    dilation = rhs_dilation or (1,) * (lhs.ndim - 2)
    if isinstance(padding, str):
        window = [(size - 1) * step + 1 for size, step in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, window_strides, padding)
    lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    return lax.conv_general_dilated(lhs, rhs, window_strides, "VALID", rhs_dilation=rhs_dilation, **options)


def latency(model: nn.Module, image_shape: Sequence[int], variables: Mapping[str, Any] | None = None) -> float:
    """Seconds from a normalized image (height, width, channels) to its logits: the median of up to 50 calls.

    Compiled as for evaluation and prediction, with batch norm folded, on JAX's default device. The first calls are
    not timed.

    Args:
      variables: the network's; None: random ones.
    """
    images = jnp.zeros((1, *image_shape))
    if variables is None:
        variables = _random_variables(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images))
    folded = jax.jit(partial(inference_variables, model))(variables)
    run = jax.jit(partial(fold_model(model).apply, train=False)).lower(folded, images)
    run = run.compile(ops.compiler_options(getattr(model, "dtype", None)))
    for _ in range(3):
        jax.block_until_ready(run(folded, images))
    seconds: list[float] = []
    while len(seconds) < LATENCY_CALLS and sum(seconds) < LATENCY_SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(run(folded, images))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _random_variables(shapes: Any) -> Any:
    """Scaled to keep activations in range, since numbers near zero are slower on some CPUs."""
    noise = np.random.default_rng(0).standard_normal(2**16, np.float32)

    def draw(leaf):
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        values = np.resize(noise, leaf.shape) * np.sqrt(2 / fan_in) if leaf.ndim > 1 else np.ones(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, shapes)
