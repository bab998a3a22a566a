"""Augmentation and normalisation of image batches, as pure functions that run inside the jitted train step.

Every transformation takes one PRNG key and a float batch scaled to 0..1, draws for each example on its own, and
keeps shape and dtype. Nothing is exchanged between examples, so a batch that is sharded over devices stays where
it is, and the draws are the same however it is laid out. The arithmetic is torchvision's; the part of a
transformation that has no randomness is a function of its own (`affine_resample`, `adjust_hue`, ...).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from inception_jax.errors import UserError, unknown_name

CROP_ATTEMPTS = 10  # crops that are drawn before the central one is taken (torchvision)
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R BT.601, to torchvision's digits)


def augment(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    *,
    pad_and_crop: int = 0,
    random_resized_crop: Sequence[float] = (),
    aspect_ratio: Sequence[float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.0,
    rotation: float = 0.0,
    zoom: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    cutout: int = 0,
) -> Float[Array, "b h w c"]:
    """Applies every transformation whose strength is not 0 or (), as the function of the same name describes it.

    The order is fixed: random resized crop, rotation and zoom, as one bilinear resampling; pad and crop; flip;
    brightness, contrast, saturation, hue (torchvision's ColorJitter shuffles these four); cutout. Each has a key
    of its own, so that switching one on leaves the draws of the others as they were.
    """
    strengths = {
        "pad_and_crop": pad_and_crop,
        "horizontal_flip": horizontal_flip,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "cutout": cutout,
    }
    geometry_key, key = jax.random.split(key)
    crop_key, rotation_key, zoom_key = jax.random.split(geometry_key, 3)
    if random_resized_crop or rotation or zoom:
        # One resampling blurs less than three and takes a third as long; what is off draws its identity.
        degrees, factors = draw_rotations(rotation_key, images, rotation), draw_zooms(zoom_key, images, zoom)
        matrices = similarity_matrices(degrees, factors)
        boxes = draw_crops(crop_key, images, random_resized_crop, aspect_ratio) if random_resized_crop else None
        images = affine_resample(images, matrices, boxes)
    for index, (name, strength) in enumerate(strengths.items()):
        if strength:
            images = _TRANSFORMATIONS[name](jax.random.fold_in(key, index), images, strength)
    return images


# --- geometry ---------------------------------------------------------------------------------------------------


def pad_and_crop(key: PRNGKeyArray, images: Float[Array, "b h w c"], pixels: int) -> Float[Array, "b h w c"]:
    """Pads every side with `pixels` zeros, then crops to the first size at a place drawn uniformly."""
    batch, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)


def horizontal_flip(key: PRNGKeyArray, images: Float[Array, "b h w c"], probability: float) -> Float[Array, "b h w c"]:
    """Mirrors each image left to right with `probability`."""
    flipped = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_resized_crop(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Float[Array, "b h w c"]:
    """Crops a box (see `draw_crops`) and resizes it, bilinearly, to the first size (Szegedy et al. 2015, section 6)."""
    identity = jnp.broadcast_to(jnp.eye(2, dtype=_wide(images)), (len(images), 2, 2))
    return affine_resample(images, identity, draw_crops(key, images, scale, ratio))


def rotation(key: PRNGKeyArray, images: Float[Array, "b h w c"], degrees: float) -> Float[Array, "b h w c"]:
    """Turns about the centre by an angle uniform in [-degrees, degrees]; zeros come in from outside."""
    angles = draw_rotations(key, images, degrees)
    return affine_resample(images, similarity_matrices(angles, jnp.ones_like(angles)))


def zoom(key: PRNGKeyArray, images: Float[Array, "b h w c"], amount: float) -> Float[Array, "b h w c"]:
    """Scales about the centre by a factor uniform in [1 - amount, 1 + amount]; zeros come in from outside.

    Raises UserError for an amount that is not in [0, 1): a factor of 0 shrinks an image to nothing.
    """
    factors = draw_zooms(key, images, amount)
    return affine_resample(images, similarity_matrices(jnp.zeros_like(factors), factors))


def draw_crops(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], scale: Sequence[float], ratio: Sequence[float]
) -> Float[Array, "b 4"]:
    """Boxes (top, left, height, width) in whole pixels, distributed as torchvision's RandomResizedCrop has them.

    The share of the area is uniform in `scale`, width / height log-uniform in `ratio`. Of ten such boxes the first
    that fits is taken, at a place drawn uniformly; where none does, the largest central one within `ratio`.
    """
    batch, full_height, full_width, _ = images.shape
    dtype = _wide(images)
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    attempts = (batch, CROP_ATTEMPTS)
    area = full_height * full_width * jax.random.uniform(area_key, attempts, dtype, *scale)
    aspect = jnp.exp(jax.random.uniform(ratio_key, attempts, dtype, *(math.log(limit) for limit in ratio)))
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=-1)))
    full = jnp.array([full_height, full_width], dtype)
    # The fallback stands last and always fits, so that the first that fits is always there.
    fallback = jnp.array([
        min(full_height, round(full_width / ratio[0])),
        min(full_width, round(full_height * ratio[1])),
    ], dtype)  # fmt: skip
    sizes = jnp.concatenate([sizes, jnp.broadcast_to(fallback, (batch, 1, 2))], axis=1)
    chosen = jnp.argmax(jnp.all((sizes > 0) & (sizes <= full), axis=-1), axis=1)[:, None]
    size = jnp.take_along_axis(sizes, chosen[..., None], axis=1)[:, 0]
    place = jax.random.uniform(place_key, (batch, 2), dtype)
    corner = jnp.where(chosen == CROP_ATTEMPTS, (full - size) // 2, jnp.floor(place * (full - size + 1)))
    return jnp.concatenate([corner, size], axis=1)


def draw_rotations(key: PRNGKeyArray, images: Float[Array, "b h w c"], degrees: float) -> Float[Array, " b"]:
    """Angles in degrees, uniform in [-degrees, degrees]."""
    return jax.random.uniform(key, (len(images),), _wide(images), -degrees, degrees)


def draw_zooms(key: PRNGKeyArray, images: Float[Array, "b h w c"], amount: float) -> Float[Array, " b"]:
    """Factors uniform in [1 - amount, 1 + amount]; raises UserError for an amount that is not in [0, 1)."""
    if not 0 <= amount < 1:
        raise UserError(f"zoom={amount} is not allowed: it must be at least 0 and below 1")
    return jax.random.uniform(key, (len(images),), _wide(images), 1 - amount, 1 + amount)


def similarity_matrices(degrees: Float[Array, " b"], factors: Float[Array, " b"]) -> Float[Array, "b 2 2"]:
    """Matrices for `affine_resample` that turn images counter-clockwise by `degrees` and enlarge them by `factors`."""
    angles = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angles) / factors, jnp.sin(angles) / factors
    return jnp.stack([jnp.stack([cos, -sin], axis=-1), jnp.stack([sin, cos], axis=-1)], axis=-2)


def affine_resample(
    images: Float[Array, "b h w c"],
    matrices: Float[Array, "b 2 2"],
    boxes: Float[Array, "b 4"] | None = None,
) -> Float[Array, "b h w c"]:
    """Crops each image to its box, resizes that to the whole size and maps it linearly about its centre, in one go.

    `matrices` take an output pixel's (x, y), counted in pixels from the centre with y downwards, to the place in
    the resized crop whose value it gets; `boxes` are (top, left, height, width) in whole pixels, the entire image
    where there are none. Bilinear; zeros come in from outside the resized crop, none from outside the box. Equals
    torchvision's `resized_crop` where matrices are the identity, and its `rotate` and `affine` where boxes are None.
    """
    batch, height, width, _ = images.shape
    dtype = _wide(images)
    if boxes is None:
        boxes = jnp.broadcast_to(jnp.array([0, 0, height, width], dtype), (batch, 4))
    top, left, box_height, box_width = jnp.moveaxis(boxes.astype(dtype), 1, 0)[..., None, None]
    x = jnp.arange(width, dtype=dtype) - (width - 1) / 2
    y = jnp.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    (xx, xy), (yx, yy) = jnp.moveaxis(matrices.astype(dtype), 0, 2)[..., None, None]
    columns = xx * x + xy * y + (width - 1) / 2
    rows = yx * x + yy * y + (height - 1) / 2
    inside = _coverage(rows, height) * _coverage(columns, width)

    upper, lower, down = _neighbours(rows, height, top, box_height)
    before, after, right = _neighbours(columns, width, left, box_width)
    # One gather per corner: XLA fuses the four with the arithmetic, on CPUs at a fraction of the price of
    # resampling by matrix products. vmap marks the batch as a batch, so that sharded examples stay in place.
    pick = jax.vmap(lambda image, row, column: image.at[row, column].get(mode="clip"))
    down, right, inside = down[..., None], right[..., None], inside[..., None]
    above = pick(images, upper, before) * (1 - right) + pick(images, upper, after) * right
    below = pick(images, lower, before) * (1 - right) + pick(images, lower, after) * right
    return ((above * (1 - down) + below * down) * inside).astype(images.dtype)


def _coverage(places: Float[Array, "b h w"], size: int) -> Float[Array, "b h w"]:
    """The share of a bilinear sample along one axis that lies on pixels 0 to size - 1; the rest lies on zeros."""
    return jnp.clip(jnp.minimum(places + 1, size - places), 0, 1)


def _neighbours(places: Float[Array, "b h w"], size: int, start: Array, extent: Array) -> tuple[Array, Array, Array]:
    """The two pixels beside places on an axis onto which a box was resized, and the second one's weight."""
    last = extent - 1
    places = jnp.clip((places + 0.5) * (extent / size) - 0.5, 0, last)
    first = jnp.floor(places)
    second = jnp.minimum(first + 1, last)
    return (start + first).astype(jnp.int32), (start + second).astype(jnp.int32), places - first


# --- colour -----------------------------------------------------------------------------------------------------


def brightness(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: float) -> Float[Array, "b h w c"]:
    """`adjust_brightness` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_brightness(images, _draw_factors(key, images, strength))


def contrast(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: float) -> Float[Array, "b h w c"]:
    """`adjust_contrast` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_contrast(images, _draw_factors(key, images, strength))


def saturation(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: float) -> Float[Array, "b h w c"]:
    """`adjust_saturation` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_saturation(images, _draw_factors(key, images, strength))


def hue(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: float) -> Float[Array, "b h w c"]:
    """`adjust_hue` by a shift uniform in [-strength, strength]."""
    return adjust_hue(images, jax.random.uniform(key, (len(images),), _wide(images), -strength, strength))


def adjust_brightness(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with black: factor 0 gives black, 1 the image; clipped to 0..1."""
    return _blend(images, jnp.zeros_like(images), factors)


def adjust_contrast(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the image's mean grey: factor 0 gives that grey, 1 the image; clipped to 0..1."""
    means = images.mean(axis=(1, 2), keepdims=True, dtype=_wide(images))
    return _blend(images, _grey(means) if images.shape[-1] == 3 else means.mean(axis=-1, keepdims=True), factors)


def adjust_saturation(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the grey image: factor 0 gives that, 1 the image; clipped to 0..1. Only colour images change."""
    return _blend(images, _grey(images), factors) if images.shape[-1] == 3 else images


def adjust_hue(images: Float[Array, "b h w c"], shifts: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Shifts the hue in HSV space by `shifts` turns of the colour circle. Only colour images change."""
    if images.shape[-1] != 3:
        return images
    red, green, blue = jnp.moveaxis(images.astype(_wide(images)), -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)  # grey has no hue, and needs none
    sextant = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + 6 * shifts[:, None, None]
    # Red, green and blue each lack `chroma` where the hue is at least two sextants from their own.
    distances = sextant[..., None] + jnp.array([5, 3, 1], sextant.dtype)
    distances -= 6 * jnp.floor(distances / 6)  # modulo 6, at a tenth of jnp.mod's price on CPUs
    lack = jnp.clip(jnp.minimum(distances, 4 - distances), 0, 1)
    return (value[..., None] - chroma[..., None] * lack).astype(images.dtype)


def _draw_factors(key: PRNGKeyArray, images: Array, strength: float) -> Float[Array, " b"]:
    return jax.random.uniform(key, (len(images),), _wide(images), max(0.0, 1 - strength), 1 + strength)


def _blend(images: Array, others: Array, factors: Array) -> Array:
    factors = factors[:, None, None, None]
    return jnp.clip(factors * images + (1 - factors) * others, 0, 1).astype(images.dtype)


def _grey(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    # Neither a matrix product, which GPUs round to TF32, nor a reduction, ten times as slow on CPUs.
    red, green, blue = jnp.split(images.astype(_wide(images)), 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


# --- occlusion --------------------------------------------------------------------------------------------------


def cutout(key: PRNGKeyArray, images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h w c"]:
    """Zeroes a square of `size` pixels whose centre is uniform over the image (DeVries and Taylor 2017).

    The part of the square that lies outside is lost. Zero is black here, before normalisation.
    """
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    hidden_rows = _hidden(jax.random.randint(row_key, (batch, 1), 0, height), height, size)
    hidden_columns = _hidden(jax.random.randint(column_key, (batch, 1), 0, width), width, size)
    return jnp.where((hidden_rows[:, :, None] & hidden_columns[:, None, :])[..., None], 0, images)


def _hidden(centres: Array, extent: int, size: int) -> Array:
    """Which of an axis's pixels a square hides."""
    distances = jnp.arange(extent) - centres + size // 2
    return (distances >= 0) & (distances < size)


# Those without resampling, in the order in which `augment` applies them.
_TRANSFORMATIONS = {
    "pad_and_crop": pad_and_crop,
    "horizontal_flip": horizontal_flip,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "cutout": cutout,
}


# --- scale of the values ----------------------------------------------------------------------------------------


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
    """Brings images from 0..1 to the scale that the network is fed with.

    `normalization` is "none" (0 to 255), "unit" (0 to 1), "mean" (less `mean`), "mean_std" (less `mean`, over
    `std`) or "per_image" (less the image's own mean, over its own deviation, which is taken as at least
    1 / sqrt(h * w * c), as tf.image.per_image_standardization has it). `mean` and `std` hold one number per
    channel, for pixels scaled to 0..1; a channel whose std is 0 is only centred.

    Raises UserError for an unknown name, and for a needed mean or std that does not have one number per channel.
    """
    match normalization:
        case "none":
            return images * 255
        case "unit":
            return images
        case "mean":
            return images - _per_channel("mean", mean, images)
        case "mean_std":
            deviations = _per_channel("std", std, images)
            return (images - _per_channel("mean", mean, images)) / jnp.where(deviations == 0, 1, deviations)
        case "per_image":
            wide = images.astype(_wide(images))
            own_mean = wide.mean(axis=(1, 2, 3), keepdims=True)
            own_std = jnp.maximum(wide.std(axis=(1, 2, 3), keepdims=True), 1 / math.sqrt(math.prod(images.shape[1:])))
            return ((wide - own_mean) / own_std).astype(images.dtype)
    raise unknown_name("normalization", normalization, ("none", "unit", "mean", "mean_std", "per_image"))


def _per_channel(name: str, values: ArrayLike | Sequence[float] | None, images: Array) -> Array:
    array = jnp.asarray(() if values is None else values, images.dtype)
    channels = images.shape[-1]
    if array.shape != (channels,):
        raise UserError(
            f"{name} has shape {array.shape}, but images have {channels} channels: give one number for each"
        )
    return array


def _wide(images: Array) -> jnp.dtype:
    """The dtype for draws, places and statistics: the images' own, but at least float32."""
    return jnp.promote_types(images.dtype, jnp.float32)
