"""Color augmentation: brightness, contrast, saturation, hue, and the color operations of RandAugment.

The functions that draw (`brightness`, `contrast`, ...) are separate from the deterministic ones that they apply
(`adjust_brightness`, ...). The arithmetic is torchvision's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from inception_jax.data.augment.normalization import Scalar, wide_dtype

LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in gray (ITU-R BT.601, with torchvision's digits)


def brightness(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: Scalar) -> Float[Array, "b h w c"]:
    """`adjust_brightness` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_brightness(images, _draw_factors(key, images, strength))


def contrast(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: Scalar) -> Float[Array, "b h w c"]:
    """`adjust_contrast` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_contrast(images, _draw_factors(key, images, strength))


def saturation(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: Scalar) -> Float[Array, "b h w c"]:
    """`adjust_saturation` by a factor uniform in [max(0, 1 - strength), 1 + strength]."""
    return adjust_saturation(images, _draw_factors(key, images, strength))


def hue(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: Scalar) -> Float[Array, "b h w c"]:
    """`adjust_hue` by a shift uniform in [-strength, strength]."""
    return adjust_hue(images, jax.random.uniform(key, (len(images),), wide_dtype(images), -strength, strength))


def adjust_brightness(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with black: factor 0 gives black, 1 the image; clipped to 0..1."""
    return blend(images, jnp.zeros_like(images), factors)


def adjust_contrast(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the image's mean gray: factor 0 gives that gray, 1 the image; clipped to 0..1."""
    return blend(images, mean_gray(images), factors)


def adjust_saturation(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the grayscale image: factor 0 gives that, 1 the image; clipped to 0..1. Only color images change."""
    return blend(images, gray(images), factors) if images.shape[-1] == 3 else images


def adjust_sharpness(images: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Blends with the smoothed image: factor 0 gives that, 1 the image, 2 a sharper one; clipped to 0..1.

    Smoothing is Pillow's ImageFilter.SMOOTH: the mean of 3 x 3 pixels with weight 5 in the middle; the border keeps
    its values.
    """
    return blend(images, smooth(images), factors)


def adjust_hue(images: Float[Array, "b h w c"], shifts: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Shifts the hue in HSV space by `shifts` turns of the color circle. Only color images change."""
    if images.shape[-1] != 3:
        return images
    red, green, blue = jnp.moveaxis(images.astype(wide_dtype(images)), -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)  # gray has no hue, and needs none
    sextant = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + 6 * shifts[:, None, None]
    # Red, green and blue each lack all of `chroma` if the hue is at least two sextants away from their own.
    distances = sextant[..., None] + jnp.array([5, 3, 1], sextant.dtype)
    distances -= 6 * jnp.floor(distances / 6)  # modulo 6, at a tenth of the cost of jnp.mod on CPUs
    lack = jnp.clip(jnp.minimum(distances, 4 - distances), 0, 1)
    return (value[..., None] - chroma[..., None] * lack).astype(images.dtype)


def posterize(images: Float[Array, "b h w c"], bits: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Keeps the highest `bits` (0 to 8) of each pixel's eight bits, after rounding to multiples of 1/255."""
    steps = jnp.left_shift(1, 8 - bits)[:, None, None, None]
    return _from_levels(_levels(images) & -steps, images)


def solarize(images: Float[Array, "b h w c"], thresholds: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """Inverts the pixels whose level (0 to 255, rounded) is at least the threshold."""
    bright = jnp.round(images.astype(wide_dtype(images)) * 255) >= thresholds[:, None, None, None]
    return jnp.where(bright, 1 - images, images)


def autocontrast(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Stretches each channel so that its darkest pixel becomes 0 and its brightest 1; constant ones do not change."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    even = low == high
    stretched = (images - jnp.where(even, 0, low)) / jnp.where(even, 1, high - low)
    return jnp.clip(stretched, 0, 1).astype(images.dtype)


def equalize(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Equalizes each channel's histogram of levels (rounded to 0 to 255), as Pillow does.

    A channel whose levels below the brightest have fewer than 255 pixels in total does not change.
    """
    batch, height, width, channels = images.shape
    levels = _levels(images).reshape(batch, height * width, channels)
    # On CPUs a scatter-add takes 18 ns per value, and a matrix product of indicators up to 15 times as long.
    count = jax.vmap(lambda column: jnp.zeros(256, jnp.int32).at[column].add(1), in_axes=1, out_axes=1)
    counts = jax.vmap(count)(levels)
    brightest = jnp.take_along_axis(counts, levels.max(axis=1, keepdims=True), axis=1)
    step = (height * width - brightest) // 255
    darker = jnp.cumsum(counts, axis=1) - counts
    table = _from_levels(jnp.clip((darker + step // 2) // jnp.maximum(step, 1), 0, 255), images)
    equalized = jnp.take_along_axis(table, levels, axis=1).reshape(images.shape)
    return jnp.where(step[:, :, None] > 0, equalized, images)


def _levels(images: Float[Array, "b h w c"]) -> Int[Array, "b h w c"]:
    return jnp.clip(jnp.round(images.astype(wide_dtype(images)) * 255), 0, 255).astype(jnp.int32)


def _from_levels(levels: Int[Array, "*shape"], images: Float[Array, "b h w c"]) -> Float[Array, "*shape"]:
    return (levels.astype(wide_dtype(images)) / 255).astype(images.dtype)


def _draw_factors(key: PRNGKeyArray, images: Float[Array, "b h w c"], strength: Scalar) -> Float[Array, " b"]:
    return jax.random.uniform(key, (len(images),), wide_dtype(images), max(0.0, 1 - strength), 1 + strength)


def blend(
    images: Float[Array, "b h w c"], others: Float[Array, "#b #h #w #c"], factors: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """`factors * images + (1 - factors) * others`, clipped to 0..1; `others` is broadcast to the images' shape."""
    factors = factors[:, None, None, None]
    return jnp.clip(factors * images + (1 - factors) * others, 0, 1).astype(images.dtype)


def gray(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    """The luma of color images, with the weights LUMA."""
    # Neither a matrix product, which GPUs round to TF32, nor a reduction, which is ten times slower on CPUs.
    red, green, blue = jnp.split(images.astype(wide_dtype(images)), 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def mean_gray(images: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    """The mean of each image's gray values."""
    means = images.mean(axis=(1, 2), keepdims=True, dtype=wide_dtype(images))
    return gray(means) if images.shape[-1] == 3 else means.mean(axis=-1, keepdims=True)


def smooth(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pillow's ImageFilter.SMOOTH, see `adjust_sharpness`."""
    wide = images.astype(wide_dtype(images))
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return wide.at[:, 1:-1, 1:-1].set((sums + 4 * wide[:, 1:-1, 1:-1]) / 13)
