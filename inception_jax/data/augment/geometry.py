"""Geometric augmentation: crops, flips, rotation, zoom and shears, by bilinear or nearest-neighbor resampling.

The functions that draw are separate from those that resample (`affine_resample`, `affine_nearest`), so that several
transformations can be drawn on their own and applied in one resampling. The arithmetic is torchvision's.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from inception_jax.data.augment.normalization import Scalar, wide_dtype
from inception_jax.errors import UserError

CROP_ATTEMPTS = 10  # crops drawn before falling back to the central one (torchvision)


def pad_and_crop(key: PRNGKeyArray, images: Float[Array, "b h w c"], pixels: int) -> Float[Array, "b h w c"]:
    """Pads every side with `pixels` zeros, then crops to the original size at a uniformly drawn position.

    Raises:
      UserError: so many pixels that nothing of the image might be left.
    """
    batch, *shape = images.shape
    check_pixels("pad_and_crop", pixels, images, min(shape[:2]) - 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)


def horizontal_flip(key: PRNGKeyArray, images: Float[Array, "b h w c"], probability: Scalar) -> Float[Array, "b h w c"]:
    """Mirrors each image left to right with `probability`."""
    flipped = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def vertical_flip(key: PRNGKeyArray, images: Float[Array, "b h w c"], probability: Scalar) -> Float[Array, "b h w c"]:
    """Mirrors each image top to bottom with `probability`."""
    flipped = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, ::-1], images)


def quarter_turns(key: PRNGKeyArray, images: Float[Array, "b h w c"], probability: Scalar) -> Float[Array, "b h w c"]:
    """Turns each image by 90, 180 or 270 degrees, equally often, with `probability`: 0.75 has all four directions.

    Raises:
      UserError: images that are not square.
    """
    batch, height, width, _ = images.shape
    if height != width:
        raise UserError(f"quarter_turns is not allowed for images of {height}x{width} pixels: they must be square")
    turn_key, number_key = jax.random.split(key)
    turned = jax.random.bernoulli(turn_key, probability, (batch,))
    turns = jnp.where(turned, jax.random.randint(number_key, (batch,), 1, 4), 0)[:, None, None, None]
    images = jnp.where(turns % 2 == 1, images.swapaxes(1, 2)[:, ::-1], images)
    return jnp.where(turns >= 2, images[:, ::-1, ::-1], images)


def random_resized_crop(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Float[Array, "b h w c"]:
    """Crops a box (see `draw_crops`), resized bilinearly to the original size (Szegedy et al. 2015, section 6)."""
    identity = jnp.broadcast_to(jnp.eye(2, dtype=wide_dtype(images)), (len(images), 2, 2))
    return affine_resample(images, identity, draw_crops(key, images, scale, ratio))


def rotation(key: PRNGKeyArray, images: Float[Array, "b h w c"], degrees: Scalar) -> Float[Array, "b h w c"]:
    """Rotates about the center by an angle uniform in [-degrees, degrees]; pixels from outside are zero."""
    angles = draw_rotations(key, images, degrees)
    return affine_resample(images, similarity_matrices(angles, jnp.ones_like(angles)))


def zoom(key: PRNGKeyArray, images: Float[Array, "b h w c"], amount: Scalar) -> Float[Array, "b h w c"]:
    """Scales about the center by a factor uniform in [1 - amount, 1 + amount]; pixels from outside are zero.

    Raises:
      UserError: an amount outside [0, 1): a factor of 0 would shrink the image to nothing.
    """
    factors = draw_zooms(key, images, amount)
    return affine_resample(images, similarity_matrices(jnp.zeros_like(factors), factors))


def draw_crops(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], scale: Sequence[float], ratio: Sequence[float]
) -> Float[Array, "b 4"]:
    """Boxes (top, left, height, width) in whole pixels, distributed as torchvision's RandomResizedCrop has them.

    The share of the area is uniform in `scale` and width / height is log-uniform in `ratio`. The first of ten such
    boxes that fits is placed uniformly; if none fits, the largest central box within `ratio` is used.
    """
    batch, full_height, full_width, _ = images.shape
    dtype = wide_dtype(images)
    size_key, ratio_key, place_key = jax.random.split(key, 3)
    sizes = draw_sizes(size_key, ratio_key, images, scale, ratio)
    full = jnp.array([full_height, full_width], dtype)
    # The fallback comes last and always fits, so that there always is a first one that fits.
    fallback = jnp.array([
        min(full_height, max(1, round(full_width / ratio[0]))),
        min(full_width, max(1, round(full_height * ratio[1]))),
    ], dtype)  # fmt: skip
    sizes = jnp.concatenate([sizes, jnp.broadcast_to(fallback, (batch, 1, 2))], axis=1)
    chosen = jnp.argmax(jnp.all((sizes > 0) & (sizes <= full), axis=-1), axis=1)[:, None]
    size = jnp.take_along_axis(sizes, chosen[..., None], axis=1)[:, 0]
    place = jax.random.uniform(place_key, (batch, 2), dtype)
    corner = jnp.where(chosen == CROP_ATTEMPTS, (full - size) // 2, jnp.floor(place * (full - size + 1)))
    return jnp.concatenate([corner, size], axis=1)


def draw_sizes(
    area_key: PRNGKeyArray,
    ratio_key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    scale: Sequence[float],
    ratio: Sequence[float],
) -> Float[Array, "b n 2"]:
    """Heights and widths in whole pixels: area uniform in `scale`, width / height log-uniform in `ratio`."""
    batch, height, width, _ = images.shape
    attempts, dtype = (batch, CROP_ATTEMPTS), wide_dtype(images)
    area = height * width * jax.random.uniform(area_key, attempts, dtype, *scale)
    aspect = jnp.exp(jax.random.uniform(ratio_key, attempts, dtype, *(math.log(limit) for limit in ratio)))
    return jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=-1)))


def draw_rotations(key: PRNGKeyArray, images: Float[Array, "b h w c"], degrees: Scalar) -> Float[Array, " b"]:
    """Angles in degrees, uniform in [-degrees, degrees]."""
    return jax.random.uniform(key, (len(images),), wide_dtype(images), -degrees, degrees)


def draw_zooms(key: PRNGKeyArray, images: Float[Array, "b h w c"], amount: Scalar) -> Float[Array, " b"]:
    """Factors uniform in [1 - amount, 1 + amount]; raises UserError for an amount outside [0, 1)."""
    if not 0 <= amount < 1:
        raise UserError(f"zoom={amount} is not allowed: it must be at least 0 and below 1")
    return jax.random.uniform(key, (len(images),), wide_dtype(images), 1 - amount, 1 + amount)


def similarity_matrices(degrees: Float[Array, " b"], factors: Float[Array, " b"]) -> Float[Array, "b 2 2"]:
    """Matrices for `affine_resample` that rotate images counterclockwise by `degrees` and enlarge them by `factors`."""
    angles = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angles) / factors, jnp.sin(angles) / factors
    return jnp.stack([jnp.stack([cos, -sin], axis=-1), jnp.stack([sin, cos], axis=-1)], axis=-2)


def affine_resample(
    images: Float[Array, "b h w c"],
    matrices: Float[Array, "b 2 2"],
    boxes: Float[Array, "b 4"] | None = None,
) -> Float[Array, "b h w c"]:
    """Crops each image to its box, resizes that to the full size and maps it linearly about its center, in one step.

    Equals torchvision's `resized_crop` if the matrices are the identity, and its `rotate` and `affine` if boxes is
    None.

    Args:
      images: float `(batch, height, width, channels)`.
      matrices: map an output pixel's (x, y), in pixels from the center with y pointing down, to the position in the
        resized crop that it is sampled from.
      boxes: (top, left, height, width) in whole pixels; None: the entire image.

    Returns:
      images of the same shape and dtype, sampled bilinearly. Pixels outside the resized crop are zero; pixels outside
      the box are never sampled.
    """
    batch, height, width, _ = images.shape
    dtype = wide_dtype(images)
    if boxes is None:
        boxes = jnp.broadcast_to(jnp.array([0, 0, height, width], dtype), (batch, 4))
    top, left, box_height, box_width = jnp.moveaxis(boxes.astype(dtype), 1, 0)[..., None, None]
    rows, columns = _places(images, matrices)
    inside = _coverage(rows, height) * _coverage(columns, width)

    upper, lower, down = _neighbors(rows, height, top, box_height)
    before, after, right = _neighbors(columns, width, left, box_width)
    # One gather per corner: XLA fuses the four with the arithmetic, on CPUs at a fraction of the cost of resampling
    # by matrix products.
    down, right, inside = down[..., None], right[..., None], inside[..., None]
    above = _pick(images, upper, before) * (1 - right) + _pick(images, upper, after) * right
    below = _pick(images, lower, before) * (1 - right) + _pick(images, lower, after) * right
    return ((above * (1 - down) + below * down) * inside).astype(images.dtype)


def affine_nearest(
    images: Float[Array, "b h w c"], matrices: Float[Array, "b 2 2"], shifts: Float[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Maps each image linearly about its center with nearest-neighbor sampling; pixels from outside are zero.

    Args:
      images: float `(batch, height, width, channels)`.
      matrices: as in `affine_resample`.
      shifts: (x, y) in pixels, added to the sampled positions.
    """
    _, height, width, _ = images.shape
    rows, columns = _places(images, matrices)
    columns = jnp.round(columns + shifts[:, :1, None])
    rows = jnp.round(rows + shifts[:, 1:, None])
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return jnp.where(inside[..., None], _pick(images, rows.astype(jnp.int32), columns.astype(jnp.int32)), 0)


def _places(
    images: Float[Array, "b h w c"], matrices: Float[Array, "b 2 2"]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """The rows and columns that matrices map every pixel of the images to."""
    _, height, width, _ = images.shape
    dtype = wide_dtype(images)
    x = jnp.arange(width, dtype=dtype) - (width - 1) / 2
    y = jnp.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    (xx, xy), (yx, yy) = jnp.moveaxis(matrices.astype(dtype), 0, 2)[..., None, None]
    return yx * x + yy * y + (height - 1) / 2, xx * x + xy * y + (width - 1) / 2


def _pick(
    images: Float[Array, "b h w c"], rows: Int[Array, "b h w"], columns: Int[Array, "b h w"]
) -> Float[Array, "b h w c"]:
    """The pixels at rows and columns. vmap marks the batch dimension, so that sharded examples stay where they are."""
    return jax.vmap(lambda image, row, column: image.at[row, column].get(mode="clip"))(images, rows, columns)


def _coverage(places: Float[Array, "b h w"], size: int) -> Float[Array, "b h w"]:
    """The share of a bilinear sample along one axis that falls on pixels 0 to size - 1; the rest falls on zeros."""
    return jnp.clip(jnp.minimum(places + 1, size - places), 0, 1)


def _neighbors(
    places: Float[Array, "b h w"], size: int, start: Float[Array, "b 1 1"], extent: Float[Array, "b 1 1"]
) -> tuple[Int[Array, "b h w"], Int[Array, "b h w"], Float[Array, "b h w"]]:
    """The two pixels of a box around positions on the resized axis, and the weight of the second one."""
    last = extent - 1
    places = jnp.clip((places + 0.5) * (extent / size) - 0.5, 0, last)
    first = jnp.floor(places)
    second = jnp.minimum(first + 1, last)
    return (start + first).astype(jnp.int32), (start + second).astype(jnp.int32), places - first


def check_pixels(name: str, pixels: int, images: Float[Array, "b h w c"], most: int) -> None:
    """Raises UserError unless `pixels` is from 0 to `most`."""
    if not 0 <= pixels <= most:
        _, height, width, _ = images.shape
        raise UserError(
            f"{name}={pixels} is not allowed for images of {height}x{width} pixels: it must be from 0 to {most}"
        )
