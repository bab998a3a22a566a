"""Augmentation and normalisation of image batches, as pure functions that run inside the jitted train step.

Every transformation takes one PRNG key and a float batch scaled to 0..1, draws for each example on its own, and
keeps shape and dtype. Nothing is exchanged between examples, so a batch that is sharded over devices stays where
it is, and the draws are the same however it is laid out. The arithmetic is torchvision's; the part of a
transformation that has no randomness is a function of its own (`affine_resample`, `adjust_hue`, ...).

MixUp and CutMix alone do exchange: they mix every example, and its label, with the one before it (see `mix`).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from inception_jax.errors import UserError, unknown_name

CROP_ATTEMPTS = 10  # crops that are drawn before the central one is taken (torchvision)
ERASED_SHARES = (0.02, 0.33)  # of the area, smallest and largest; torchvision's RandomErasing, as the next line
ERASED_RATIOS = (0.3, 3.3)  # height / width
# The operations of RandAugment in torchvision's order, and whether their strength gets a random sign.
OPERATIONS = {
    "identity": False, "shear_x": True, "shear_y": True, "translate_x": True, "translate_y": True, "rotate": True,
    "brightness": True, "color": True, "contrast": True, "sharpness": True, "posterize": False, "solarize": False,
    "autocontrast": False, "equalize": False,
}  # fmt: skip
LARGEST_MAGNITUDE = 30  # of RandAugment: torchvision's last of 31 bins
MIXING = ("mixup", "cutmix")  # the fields of config.data.augment that `mix` takes, and `augment` does not
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
    randaugment_ops: int = 0,
    randaugment_magnitude: int = 9,
    random_erasing: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Applies every transformation whose strength is not 0 or (), as the function of the same name describes it.

    The order is fixed: random resized crop, rotation and zoom, as one bilinear resampling; pad and crop; flip;
    brightness, contrast, saturation, hue (torchvision's ColorJitter shuffles these four); RandAugment; cutout;
    random erasing. Each has a key of its own, so that switching one on leaves the draws of the others as they were.
    """
    strengths: dict[str, tuple[float, ...]] = {  # in the order of application
        "pad_and_crop": (pad_and_crop,),
        "horizontal_flip": (horizontal_flip,),
        "brightness": (brightness,),
        "contrast": (contrast,),
        "saturation": (saturation,),
        "hue": (hue,),
        "randaugment": (randaugment_ops, randaugment_magnitude),
        "cutout": (cutout,),
        "random_erasing": (random_erasing,),
    }
    numbers = {name: number for number, name in enumerate(_TRANSFORMATIONS)}
    geometry_key, key = jax.random.split(key)
    crop_key, rotation_key, zoom_key = jax.random.split(geometry_key, 3)
    if random_resized_crop or rotation or zoom:
        # One resampling blurs less than three and takes a third as long; what is off draws its identity.
        degrees, factors = draw_rotations(rotation_key, images, rotation), draw_zooms(zoom_key, images, zoom)
        matrices = similarity_matrices(degrees, factors)
        boxes = draw_crops(crop_key, images, random_resized_crop, aspect_ratio) if random_resized_crop else None
        images = affine_resample(images, matrices, boxes)
    for name, strength in strengths.items():
        if strength[0]:
            images = _TRANSFORMATIONS[name](jax.random.fold_in(key, numbers[name]), images, *strength)
    return images


# --- geometry ---------------------------------------------------------------------------------------------------


def pad_and_crop(key: PRNGKeyArray, images: Float[Array, "b h w c"], pixels: int) -> Float[Array, "b h w c"]:
    """Pads every side with `pixels` zeros, then crops to the first size at a place drawn uniformly.

    Raises UserError for so many that nothing of an image would be left.
    """
    batch, *shape = images.shape
    _check_pixels("pad_and_crop", pixels, images, min(shape[:2]) - 1)
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
    size_key, ratio_key, place_key = jax.random.split(key, 3)
    sizes = _draw_sizes(size_key, ratio_key, images, scale, ratio)
    full = jnp.array([full_height, full_width], dtype)
    # The fallback stands last and always fits, so that the first that fits is always there.
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


def _draw_sizes(
    area_key: PRNGKeyArray, ratio_key: PRNGKeyArray, images: Array, scale: Sequence[float], ratio: Sequence[float]
) -> Float[Array, "b n 2"]:
    """Heights and widths in whole pixels: shares of the area uniform in `scale`, width / height log-uniform."""
    batch, height, width, _ = images.shape
    attempts, dtype = (batch, CROP_ATTEMPTS), _wide(images)
    area = height * width * jax.random.uniform(area_key, attempts, dtype, *scale)
    aspect = jnp.exp(jax.random.uniform(ratio_key, attempts, dtype, *(math.log(limit) for limit in ratio)))
    return jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], axis=-1)))


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
    rows, columns = _places(images, matrices)
    inside = _coverage(rows, height) * _coverage(columns, width)

    upper, lower, down = _neighbours(rows, height, top, box_height)
    before, after, right = _neighbours(columns, width, left, box_width)
    # One gather per corner: XLA fuses the four with the arithmetic, on CPUs at a fraction of the price of
    # resampling by matrix products.
    down, right, inside = down[..., None], right[..., None], inside[..., None]
    above = _pick(images, upper, before) * (1 - right) + _pick(images, upper, after) * right
    below = _pick(images, lower, before) * (1 - right) + _pick(images, lower, after) * right
    return ((above * (1 - down) + below * down) * inside).astype(images.dtype)


def affine_nearest(
    images: Float[Array, "b h w c"], matrices: Float[Array, "b 2 2"], shifts: Float[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Maps each image linearly about its centre, each pixel getting the value of the one nearest to its place.

    `matrices` as in `affine_resample`; `shifts` are (x, y) in pixels, added to the places. Zeros come in from outside.
    """
    _, height, width, _ = images.shape
    rows, columns = _places(images, matrices)
    columns = jnp.round(columns + shifts[:, :1, None])
    rows = jnp.round(rows + shifts[:, 1:, None])
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return jnp.where(inside[..., None], _pick(images, rows.astype(jnp.int32), columns.astype(jnp.int32)), 0)


def _places(images: Array, matrices: Array) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """The rows and columns to which matrices take every pixel of images."""
    _, height, width, _ = images.shape
    dtype = _wide(images)
    x = jnp.arange(width, dtype=dtype) - (width - 1) / 2
    y = jnp.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    (xx, xy), (yx, yy) = jnp.moveaxis(matrices.astype(dtype), 0, 2)[..., None, None]
    return yx * x + yy * y + (height - 1) / 2, xx * x + xy * y + (width - 1) / 2


def _pick(images: Array, rows: Int[Array, "b h w"], columns: Int[Array, "b h w"]) -> Float[Array, "b h w c"]:
    """The pixels at rows and columns. vmap marks the batch as a batch, so that sharded examples stay in place."""
    return jax.vmap(lambda image, row, column: image.at[row, column].get(mode="clip"))(images, rows, columns)


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
    return _blend(images, _mean_grey(images), factors)


def adjust_saturation(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the grey image: factor 0 gives that, 1 the image; clipped to 0..1. Only colour images change."""
    return _blend(images, _grey(images), factors) if images.shape[-1] == 3 else images


def adjust_sharpness(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the smoothed image: factor 0 gives that, 1 the image, 2 a sharper one; clipped to 0..1.

    Smoothing is Pillow's ImageFilter.SMOOTH: of 3 x 3 pixels, the middle one five times; the border stays.
    """
    return _blend(images, _smooth(images), factors)


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


def posterize(images: Float[Array, "b h w c"], bits: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Keeps the highest `bits` (0 to 8) of each pixel's eight, after rounding to whole levels of 1/255."""
    steps = jnp.left_shift(1, 8 - bits)[:, None, None, None]
    return _from_levels(_levels(images) & -steps, images)


def solarize(images: Float[Array, "b h w c"], thresholds: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Inverts the pixels whose level (0 to 255, rounded) is at least the threshold."""
    bright = jnp.round(images.astype(_wide(images)) * 255) >= thresholds[:, None, None, None]
    return jnp.where(bright, 1 - images, images)


def autocontrast(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Stretches each channel so that its darkest pixel becomes 0 and its brightest 1; even channels stay."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    even = low == high
    stretched = (images - jnp.where(even, 0, low)) / jnp.where(even, 1, high - low)
    return jnp.clip(stretched, 0, 1).astype(images.dtype)


def equalize(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps each channel's levels (rounded to 0 to 255) so that all are about equally frequent, as Pillow does.

    A channel in which all but the brightest level have fewer than 255 pixels together stays as it is.
    """
    batch, height, width, channels = images.shape
    levels = _levels(images).reshape(batch, height * width, channels)
    # On CPUs, adding one by one takes 18 ns for each value, and a matrix product of indicators up to 15 times as long.
    count = jax.vmap(lambda column: jnp.zeros(256, jnp.int32).at[column].add(1), in_axes=1, out_axes=1)
    counts = jax.vmap(count)(levels)
    brightest = jnp.take_along_axis(counts, levels.max(axis=1, keepdims=True), axis=1)
    step = (height * width - brightest) // 255
    darker = jnp.cumsum(counts, axis=1) - counts
    table = _from_levels(jnp.clip((darker + step // 2) // jnp.maximum(step, 1), 0, 255), images)
    equalized = jnp.take_along_axis(table, levels, axis=1).reshape(images.shape)
    return jnp.where(step[:, :, None] > 0, equalized, images)


def _levels(images: Array) -> Int[Array, "b h w c"]:
    return jnp.clip(jnp.round(images.astype(_wide(images)) * 255), 0, 255).astype(jnp.int32)


def _from_levels(levels: Array, images: Array) -> Array:
    return (levels.astype(_wide(images)) / 255).astype(images.dtype)


def _draw_factors(key: PRNGKeyArray, images: Array, strength: float) -> Float[Array, " b"]:
    return jax.random.uniform(key, (len(images),), _wide(images), max(0.0, 1 - strength), 1 + strength)


def _blend(images: Array, others: Array, factors: Array) -> Array:
    factors = factors[:, None, None, None]
    return jnp.clip(factors * images + (1 - factors) * others, 0, 1).astype(images.dtype)


def _grey(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    # Neither a matrix product, which GPUs round to TF32, nor a reduction, ten times as slow on CPUs.
    red, green, blue = jnp.split(images.astype(_wide(images)), 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _mean_grey(images: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    means = images.mean(axis=(1, 2), keepdims=True, dtype=_wide(images))
    return _grey(means) if images.shape[-1] == 3 else means.mean(axis=-1, keepdims=True)


def _smooth(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    wide = images.astype(_wide(images))
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return wide.at[:, 1:-1, 1:-1].set((sums + 4 * wide[:, 1:-1, 1:-1]) / 13)


# --- RandAugment ------------------------------------------------------------------------------------------------


def randaugment(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], operations: int = 2, magnitude: int = 9
) -> Float[Array, "b h w c"]:
    """Applies so many of the 14 OPERATIONS, drawn uniformly with replacement, to each image (Cubuk et al. 2020).

    `magnitude` is from 0 to 30, with the meaning that torchvision's RandAugment gives it (`operation_strengths`).
    Unlike there, pixels are not rounded to whole levels between operations. Geometry takes the nearest pixel, as
    torchvision by default, and for a quarter of the gathers that bilinear resampling needs.
    """
    _, height, width, _ = images.shape
    strengths = jnp.array(operation_strengths(magnitude, height, width), _wide(images))
    signed = jnp.array(list(OPERATIONS.values()))
    for index in range(operations):
        operation_key, sign_key = jax.random.split(jax.random.fold_in(key, index))
        drawn = jax.random.randint(operation_key, (len(images),), 0, len(OPERATIONS))
        negative = signed[drawn] & jax.random.bernoulli(sign_key, 0.5, (len(images),))
        images = apply_operations(images, drawn, jnp.where(negative, -1, 1) * strengths[drawn])
    return images


def operation_strengths(magnitude: int, height: int, width: int) -> tuple[float, ...]:
    """What a magnitude from 0 to 30 means to each of OPERATIONS, in the unit in which `apply_operations` takes it.

    Raises UserError for another magnitude.
    """
    if not 0 <= magnitude <= LARGEST_MAGNITUDE:
        raise UserError(f"randaugment_magnitude={magnitude} is not allowed: it must be from 0 to {LARGEST_MAGNITUDE}")
    share = magnitude / LARGEST_MAGNITUDE
    strengths = {name: 0.0 for name in OPERATIONS}
    strengths |= dict.fromkeys(("shear_x", "shear_y"), 0.3 * share)
    for name, extent in (("translate_x", width), ("translate_y", height)):
        # At most 150 of the 331 pixels that images had in AutoAugment (Cubuk et al. 2019); only whole ones.
        strengths[name] = float(150 * extent * magnitude // (331 * LARGEST_MAGNITUDE))
    strengths["rotate"] = 30 * share
    strengths |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.9 * share)
    strengths |= {"posterize": 8.0 - round(4 * share), "solarize": 255 * (1 - share)}
    return tuple(strengths.values())


def apply_operations(
    images: Float[Array, "b h w c"], operations: Int[Array, " b"], strengths: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Applies to each image one of OPERATIONS, by its place there, with a strength in the operation's own unit.

    Shears: pixels per pixel, the top or left edge staying; translations: whole pixels to the right or downwards;
    rotate: degrees counter-clockwise; brightness, color (`adjust_saturation`), contrast, sharpness: what is added to a
    factor of 1; posterize: bits kept; solarize: threshold from 0 to 255; identity, autocontrast, equalize: none.

    All images go through one resampling, one blend and each of the last four operations, and keep what was drawn
    for them: a branch for each image would take the batch apart. On a CPU's core this takes 9 ms for 128 images of
    32 x 32 and 0.14 s for 32 of 224 x 224, over half of it for the histograms of `equalize`.
    """
    _, height, width, channels = images.shape
    chosen = {name: operations == index for index, name in enumerate(OPERATIONS)}

    def strength(*names: str) -> Array:
        return jnp.where(functools.reduce(jnp.logical_or, [chosen[name] for name in names]), strengths, 0)

    def where(name: str, values: Array, others: Array) -> Array:
        return jnp.where(chosen[name][:, None, None, None], values, others)

    shear_x, shear_y = strength("shear_x"), strength("shear_y")
    zeros = jnp.zeros_like(shear_x)
    shears = jnp.stack([jnp.stack([zeros, shear_x], axis=-1), jnp.stack([shear_y, zeros], axis=-1)], axis=-2)
    # What shears is the distance from the edge, half an image away from the centre that matrices turn about.
    shifts = [shear_x * (height / 2) - strength("translate_x"), shear_y * (width / 2) - strength("translate_y")]
    matrices = similarity_matrices(strength("rotate"), jnp.ones_like(zeros)) + shears
    moved = affine_nearest(images, matrices, jnp.stack(shifts, axis=-1))

    others = where("contrast", _mean_grey(moved), where("sharpness", _smooth(moved), jnp.zeros_like(moved)))
    others = where("color", _grey(moved) if channels == 3 else moved, others)
    changed = _blend(moved, others, 1 + strength("brightness", "color", "contrast", "sharpness"))
    changed = where("posterize", posterize(moved, strength("posterize").astype(jnp.int32)), changed)
    changed = where("solarize", solarize(moved, strength("solarize")), changed)
    changed = where("autocontrast", autocontrast(moved), changed)
    return where("equalize", equalize(moved), changed).astype(images.dtype)


# --- occlusion --------------------------------------------------------------------------------------------------


def cutout(key: PRNGKeyArray, images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h w c"]:
    """Zeroes a square of `size` pixels whose centre is uniform over the image (DeVries and Taylor 2017).

    The part of the square that lies outside is lost. Zero is black here, before normalisation. Raises UserError for a
    square that hides the whole image wherever it is.
    """
    batch, height, width, _ = images.shape
    _check_pixels("cutout", size, images, 2 * max(height, width) - 2)
    row_key, column_key = jax.random.split(key)
    hidden_rows = _hidden(jax.random.randint(row_key, (batch, 1), 0, height), height, size)
    hidden_columns = _hidden(jax.random.randint(column_key, (batch, 1), 0, width), width, size)
    return jnp.where((hidden_rows[:, :, None] & hidden_columns[:, None, :])[..., None], 0, images)


def random_erasing(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    probability: float,
    scale: Sequence[float] = ERASED_SHARES,
    ratio: Sequence[float] = ERASED_RATIOS,
) -> Float[Array, "b h w c"]:
    """Zeroes, with `probability`, a rectangle that lies inside the image (Zhong et al. 2020).

    Its share of the area is uniform in `scale`, height / width log-uniform in `ratio`. Of ten such rectangles the
    first that is smaller than the image both ways is taken, at a place drawn uniformly; where none is, the image
    stays. So torchvision's RandomErasing; but zero is black here, as in `cutout`, and the mean colour there, where
    erasing comes after normalisation.
    """
    batch, height, width, _ = images.shape
    dtype = _wide(images)
    chance_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    sizes = _draw_sizes(area_key, ratio_key, images, scale, (1 / ratio[1], 1 / ratio[0]))
    full = jnp.array([height, width], dtype)
    fits = jnp.all(sizes < full, axis=-1)
    size = jnp.take_along_axis(sizes, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
    corner = jnp.floor(jax.random.uniform(place_key, (batch, 2), dtype) * (full - size + 1))
    erased = jax.random.bernoulli(chance_key, probability, (batch,)) & fits.any(axis=1)
    rows, columns = jnp.arange(height) - corner[:, :1], jnp.arange(width) - corner[:, 1:]
    rows = (rows >= 0) & (rows < size[:, :1]) & erased[:, None]
    columns = (columns >= 0) & (columns < size[:, 1:])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def _hidden(centres: Array, extent: int, size: int | Array) -> Array:
    """Which of an axis's pixels a square hides."""
    distances = jnp.arange(extent) - centres + size // 2
    return (distances >= 0) & (distances < size)


# Those without resampling. Their places here are folded into their keys: new ones are appended, and none moves, or
# every run would draw other numbers.
_TRANSFORMATIONS: dict[str, Callable[..., Array]] = {
    "pad_and_crop": pad_and_crop,
    "horizontal_flip": horizontal_flip,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "cutout": cutout,
    "randaugment": randaugment,
    "random_erasing": random_erasing,
}


# --- mixtures of two examples -----------------------------------------------------------------------------------


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    *,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """MixUp or CutMix with their alphas, 0 meaning off; with both on, either of them with equal probability.

    The images may be normalised: unless that is by the image's own statistics, the result is the same before and
    after. Labels become the probabilities of the classes.
    """
    targets = jax.nn.one_hot(labels, num_classes, dtype=_wide(images))
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
    """An example's own share in its mixture, drawn from Beta(alpha, alpha): at every pixel, and of the whole.

    One draw for a batch, as torchvision's v2.MixUp has it.
    """
    share = _draw_beta(key, alpha, _wide(images))
    return jnp.full(images.shape[1:3], share), share


def draw_cutmix(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], alpha: float
) -> tuple[Float[Array, "h w"], Float[Array, ""]]:
    """An example's own share: 0 in a box, 1 elsewhere; and of the whole. One draw for a batch, as in v2.CutMix.

    The box has the image's proportions and, before it is cut off at the edges, a share of the area drawn from
    Beta(alpha, alpha); its centre is uniform over the image.
    """
    _, height, width, _ = images.shape
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _draw_beta(share_key, alpha, _wide(images)))
    rows, columns = (
        _hidden(jax.random.randint(key, (), 0, extent), extent, 2 * jnp.floor(side * extent / 2))
        for key, extent in ((row_key, height), (column_key, width))
    )
    shares = jnp.where(rows[:, None] & columns, 0, jnp.ones((), side.dtype))
    return shares, shares.mean()


def mix_pairs(
    images: Float[Array, "b h w c"], targets: Float[Array, "b k"], shares: Float[Array, "h w"], share: Float[Array, ""]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixes each example with the one before it, keeping `shares` of its pixels and `share` of its targets.

    Batches are drawn in random order, so that the one before is a random one; the first one's is the last.
    """
    weights = shares[:, :, None]
    mixed = weights * images + (1 - weights) * jnp.roll(images, 1, axis=0)
    return mixed.astype(images.dtype), share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)


def _draw_beta(key: PRNGKeyArray, alpha: float, dtype: jnp.dtype) -> Float[Array, ""]:
    """A number from Beta(alpha, alpha), by way of Student's t of 2 * alpha degrees of freedom.

    In closed form (Devroye 1996, "Random variate generation in one line of code", after Bailey 1994), since the
    rejection loops of jax.random.beta take XLA seconds to compile.
    """
    radius, angle = jax.random.uniform(key, (2,), dtype)
    cosine = jnp.cos(2 * math.pi * angle)
    # Of t squared over the degrees of freedom, which is beyond the largest number where alpha is small.
    ratio = jnp.minimum((1 - radius) ** (-1 / alpha) - 1, jnp.finfo(dtype).max) * cosine**2
    return (1 + jnp.sign(cosine) / jnp.sqrt(1 + 1 / ratio)) / 2


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


def _check_pixels(name: str, pixels: int, images: Array, most: int) -> None:
    if not 0 <= pixels <= most:
        _, height, width, _ = images.shape
        raise UserError(
            f"{name}={pixels} is not allowed for images of {height}x{width} pixels: it must be from 0 to {most}"
        )


def _wide(images: Array) -> jnp.dtype:
    """The dtype for draws, places and statistics: the images' own, but at least float32."""
    return jnp.promote_types(images.dtype, jnp.float32)
