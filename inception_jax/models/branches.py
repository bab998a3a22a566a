"""Modules of parallel branches, from tables that read like the papers' figures: what GoogLeNet's successors are made
of."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.models.layers import ConvUnit, apply_siblings


class Conv(NamedTuple):
    """A convolution of a branch.

    Attributes:
      name: of the submodule.
      padding: pixels on every side; 0 is the "V" (valid) of the figures; None is half the kernel.
    """

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int | None = None


class Pool(NamedTuple):
    """A 3x3 pool of a branch.

    Attributes:
      kind: "max", or "avg", which has stride 1.
      padding: pixels on every side, or "SAME".
      count_include_pad: what "avg" divides by at the border: 9, or the number of pixels inside the map.
    """

    kind: str
    stride: int = 1
    padding: int | str = 1
    count_include_pad: bool = True


Step = Conv | Pool | tuple[Conv, ...]  # convolutions in a tuple are parallel; their results are concatenated
Branches = tuple[tuple[Step, ...], ...]


def reduction_a(k: int, l: int, m: int, n: int) -> Branches:  # noqa: E741
    """From 35x35 to 17x17 maps (Szegedy et al. 2017, figure 7 and Table 1, whose letters these are)."""
    return (
        (Conv("conv_3x3", n, (3, 3), 2, padding=0),),
        (
            Conv("double_reduce", k),
            Conv("double_3x3_1", l, (3, 3)),
            Conv("double_3x3_2", m, (3, 3), 2, padding=0),
        ),
        (Pool("max", 2, padding=0),),
    )


def pad(branches: Branches) -> Branches:
    """The same, with every step padded by half its kernel: a map of any size is divided by the stride, rounded up."""

    def padded(step):
        if isinstance(step, Conv):
            return step._replace(padding=None)
        return step._replace(padding=1) if isinstance(step, Pool) else tuple(map(padded, step))

    return tuple(tuple(map(padded, branch)) for branch in branches)


def apply_branches(branches: Branches, x: jax.Array, train: bool, conv: Callable[..., ConvUnit]) -> jax.Array:
    """(batch, height, width, channels) to the branches' results, concatenated.

    To be called inside a compact `__call__`, whose submodules the convolutions become; `conv` makes them. The 1x1
    convolutions that branches begin with run as one where that is faster.
    """

    def unit(step: Conv) -> ConvUnit:
        padding = None if step.padding is None else ((step.padding, step.padding),) * 2
        return conv(step.features, step.kernel, (step.stride, step.stride), padding, name=step.name)

    def apply(step: Step, x: jax.Array) -> jax.Array:
        if isinstance(step, Conv):
            return unit(step)(x, train)
        if isinstance(step, Pool):
            return _pool(step, x)
        return jnp.concatenate([unit(beside)(x, train) for beside in step], axis=-1)

    heads = [branch[0] for branch in branches if isinstance(branch[0], Conv) and branch[0].kernel == (1, 1)]
    results = apply_siblings([unit(head) for head in heads], x, train) if heads else []
    applied: dict[Step, jax.Array] = dict(zip(heads, results, strict=True))
    outputs = []
    for head, *steps in branches:
        y = applied[head] if head in applied else apply(head, x)
        for step in steps:
            y = apply(step, y)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=-1)


def _pool(step: Pool, x: jax.Array) -> jax.Array:
    strides = (step.stride, step.stride)
    padding = step.padding if isinstance(step.padding, str) else ((step.padding, step.padding),) * 2
    if step.kind == "max":
        return ops.max_pool(x, (3, 3), strides, padding)
    return ops.avg_pool(x, (3, 3), strides, padding, count_include_pad=step.count_include_pad)


class BranchedModule(nn.Module):
    """Parallel branches, concatenated; the submodules have the names in `branches`.

    Attributes:
      conv: makes the convolution units: ConvUnit, given the network's options (see `layers.make_units`).
    """

    branches: Branches
    conv: Callable[..., ConvUnit] = ConvUnit

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height', width', sum of the branches' channels)."""
        return apply_branches(self.branches, x, train, self.conv)
