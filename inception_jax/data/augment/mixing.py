"""MixUp and CutMix: every example, and its label, is mixed with the example before it in the batch."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from inception_jax.data.augment.erasing import hidden
from inception_jax.data.augment.normalization import wide_dtype

MIXING = ("mixup", "cutmix")  # the fields of config.data.augment that `mix` takes instead of `augment`


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    *,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """MixUp, CutMix, or one of them drawn with equal probability for each batch.

    The images may be normalized already: unless that is by each image's own statistics, the result is the same before
    and after normalization.

    Args:
      key: PRNG key of the batch.
      images: float `(batch, height, width, channels)`.
      labels: int `(batch,)`.
      num_classes: number of classes.
      mixup, cutmix: alpha of the Beta distribution of each; 0: off.

    Returns:
      images of the same shape and dtype, and class probabilities `(batch, num_classes)`.
    """
    targets = jax.nn.one_hot(labels, num_classes, dtype=wide_dtype(images))
    if not mixup and not cutmix:
        return images, targets
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    if not cutmix:
        drawn = draw_mixup(mixup_key, images, mixup)
    elif not mixup:
        drawn = draw_cutmix(cutmix_key, images, cutmix)
    else:
        either = draw_mixup(mixup_key, images, mixup), draw_cutmix(cutmix_key, images, cutmix)
        drawn = jax.tree.map(functools.partial(jnp.where, jax.random.bernoulli(choice_key)), *either)
    return mix_pairs(images, targets, *drawn)


def mixup(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], targets: Float[Array, "b k"], alpha: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Blends each example with the one before it (Zhang et al. 2018); see `draw_mixup` and `mix_pairs`."""
    return mix_pairs(images, targets, *draw_mixup(key, images, alpha))


def cutmix(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], targets: Float[Array, "b k"], alpha: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Pastes a box of each example into the next one (Yun et al. 2019); see `draw_cutmix` and `mix_pairs`."""
    return mix_pairs(images, targets, *draw_cutmix(key, images, alpha))


def draw_mixup(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], alpha: float
) -> tuple[Float[Array, "h w"], Float[Array, ""]]:
    """The share of an example in its mixture, drawn from Beta(alpha, alpha): for every pixel, and overall.

    One draw per batch, as in torchvision's v2.MixUp.
    """
    share = _draw_beta(key, alpha, wide_dtype(images))
    return jnp.full(images.shape[1:3], share), share


def draw_cutmix(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], alpha: float
) -> tuple[Float[Array, "h w"], Float[Array, ""]]:
    """The share of an example in its mixture: 0 in a box, 1 elsewhere; and overall.

    The box has the image's aspect ratio and, before it is clipped at the edges, a share of the area drawn from
    Beta(alpha, alpha); its center is uniform over the image. One draw per batch, as in torchvision's v2.CutMix.
    """
    _, height, width, _ = images.shape
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _draw_beta(share_key, alpha, wide_dtype(images)))
    rows, columns = (
        hidden(jax.random.randint(key, (), 0, extent), extent, 2 * jnp.floor(side * extent / 2))
        for key, extent in ((row_key, height), (column_key, width))
    )
    shares = jnp.where(rows[:, None] & columns, 0, jnp.ones((), side.dtype))
    return shares, shares.mean()


def mix_pairs(
    images: Float[Array, "b h w c"], targets: Float[Array, "b k"], shares: Float[Array, "h w"], share: Float[Array, ""]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixes each example with the one before it, keeping `shares` of its pixels and `share` of its targets.

    Batches are in random order, so the one before is a random one; the first example is mixed with the last.
    """
    weights = shares[:, :, None]
    mixed = weights * images + (1 - weights) * jnp.roll(images, 1, axis=0)
    return mixed.astype(images.dtype), share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)


def _draw_beta(key: PRNGKeyArray, alpha: float, dtype: jnp.dtype) -> Float[Array, ""]:
    """A number from Beta(alpha, alpha), by way of Student's t distribution with 2 * alpha degrees of freedom.

    In closed form (Devroye 1996, "Random variate generation in one line of code", after Bailey 1994), since the
    rejection loops of jax.random.beta take XLA seconds to compile.
    """
    radius, angle = jax.random.uniform(key, (2,), dtype)
    cosine = jnp.cos(2 * math.pi * angle)
    # t squared over the degrees of freedom, which overflows if alpha is small.
    ratio = jnp.minimum((1 - radius) ** (-1 / alpha) - 1, jnp.finfo(dtype).max) * cosine**2
    return (1 + jnp.sign(cosine) / jnp.sqrt(1 + 1 / ratio)) / 2
