"""Augmentation that hides part of an image: Cutout and random erasing."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from inception_jax.data.augment.geometry import check_pixels, draw_sizes
from inception_jax.data.augment.normalization import Scalar, wide_dtype

ERASED_SHARES = (0.02, 0.33)  # smallest and largest share of the area (torchvision's RandomErasing)
ERASED_RATIOS = (0.3, 3.3)  # smallest and largest height / width (torchvision's RandomErasing)


def cutout(key: PRNGKeyArray, images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h w c"]:
    """Zeroes a square of `size` pixels whose center is uniform over the image (DeVries and Taylor 2017).

    The square is clipped at the edges. Zero is black, as this comes before normalization.

    Raises:
      UserError: a square so large that it hides the whole image wherever it is.
    """
    batch, height, width, _ = images.shape
    check_pixels("cutout", size, images, 2 * max(height, width) - 2)
    row_key, column_key = jax.random.split(key)
    hidden_rows = hidden(jax.random.randint(row_key, (batch, 1), 0, height), height, size)
    hidden_columns = hidden(jax.random.randint(column_key, (batch, 1), 0, width), width, size)
    return jnp.where((hidden_rows[:, :, None] & hidden_columns[:, None, :])[..., None], 0, images)


def random_erasing(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    probability: Scalar,
    scale: Sequence[float] = ERASED_SHARES,
    ratio: Sequence[float] = ERASED_RATIOS,
) -> Float[Array, "b h w c"]:
    """Zeroes, with `probability`, a rectangle that lies inside the image (Zhong et al. 2020).

    Its share of the area is uniform in `scale` and height / width is log-uniform in `ratio`. The first of ten such
    rectangles that is smaller than the image in both directions is placed uniformly; if there is none, the image does
    not change. This is torchvision's RandomErasing, except that zero is black here, as in `cutout`, and the mean color
    there, where erasing comes after normalization.
    """
    batch, height, width, _ = images.shape
    dtype = wide_dtype(images)
    chance_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    sizes = draw_sizes(area_key, ratio_key, images, scale, (1 / ratio[1], 1 / ratio[0]))
    full = jnp.array([height, width], dtype)
    fits = jnp.all(sizes < full, axis=-1)
    size = jnp.take_along_axis(sizes, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
    corner = jnp.floor(jax.random.uniform(place_key, (batch, 2), dtype) * (full - size + 1))
    erased = jax.random.bernoulli(chance_key, probability, (batch,)) & fits.any(axis=1)
    rows, columns = jnp.arange(height) - corner[:, :1], jnp.arange(width) - corner[:, 1:]
    rows = (rows >= 0) & (rows < size[:, :1]) & erased[:, None]
    columns = (columns >= 0) & (columns < size[:, 1:])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def hidden(
    centers: Int[Array, ""] | Int[Array, "b 1"], extent: int, size: int | Float[Array, ""]
) -> Bool[Array, " extent"] | Bool[Array, "b extent"]:
    """Which pixels along an axis of `extent` pixels a square hides, or one square for each example."""
    distances = jnp.arange(extent) - centers + size // 2
    return (distances >= 0) & (distances < size)
