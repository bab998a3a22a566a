"""From stored bytes to the scale that the network is trained on."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, UInt8

from inception_jax.errors import UserError, unknown_name

Scalar = float | Float[Array, ""]  # a strength or a probability; a traced one allows one program for several values
NORMALIZATIONS = ("none", "unit", "mean", "mean_255", "mean_std", "per_image")


def to_unit(images: UInt8[Array, "b h w c"], dtype: DTypeLike) -> Float[Array, "b h w c"]:
    """Bytes as floats from 0 to 1."""
    return images.astype(dtype) / 255


def normalize(
    images: Float[Array, "b h w c"],
    *,
    normalization: str,
    mean: ArrayLike | Sequence[float] | None = None,
    std: ArrayLike | Sequence[float] | None = None,
) -> Float[Array, "b h w c"]:
    """Scales images from 0..1 to the range that the network takes.

    Args:
      images: float `(batch, height, width, channels)`, from 0 to 1.
      normalization: "none" (0 to 255), "unit" (0 to 1), "mean" (minus `mean`), "mean_255" (minus `mean`, scaled to a
        range of 255), "mean_std" (minus `mean`, divided by `std`) or "per_image" (minus the image's own mean, divided
        by its own standard deviation, which is at least 1 / sqrt(h * w * c), as in tf.image.per_image_standardization).
      mean, std: one number per channel, for pixels scaled to 0..1. A channel whose std is 0 is only centered.

    Raises:
      UserError: an unknown normalization, or a required mean or std that does not have one number per channel.
    """
    match normalization:
        case "none":
            return images * 255
        case "unit":
            return images
        case "mean":
            return images - _per_channel("mean", mean, images)
        case "mean_255":
            return (images - _per_channel("mean", mean, images)) * 255
        case "mean_std":
            deviations = _per_channel("std", std, images)
            return (images - _per_channel("mean", mean, images)) / jnp.where(deviations == 0, 1, deviations)
        case "per_image":
            wide = images.astype(wide_dtype(images))
            own_mean = wide.mean(axis=(1, 2, 3), keepdims=True)
            own_std = jnp.maximum(wide.std(axis=(1, 2, 3), keepdims=True), 1 / math.sqrt(math.prod(images.shape[1:])))
            return ((wide - own_mean) / own_std).astype(images.dtype)
    raise unknown_name("normalization", normalization, NORMALIZATIONS)


def _per_channel(
    name: str, values: ArrayLike | Sequence[float] | None, images: Float[Array, "b h w c"]
) -> Float[Array, " c"]:
    array = jnp.asarray(() if values is None else values, images.dtype)
    channels = images.shape[-1]
    if array.shape != (channels,):
        raise UserError(
            f"{name} has shape {array.shape}, but images have {channels} channels: give one number for each"
        )
    return array


def wide_dtype(images: Float[Array, "b h w c"]) -> jnp.dtype:
    """The dtype of draws, positions and statistics: that of the images, but at least float32."""
    return jnp.promote_types(images.dtype, jnp.float32)
