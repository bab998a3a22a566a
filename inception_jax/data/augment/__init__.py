"""Augmentation and normalization of image batches, as pure functions that run inside the jitted train step.

Every transformation takes one PRNG key and a float batch scaled to 0..1, draws for each example independently, and
keeps shape and dtype. Nothing is exchanged between examples, so a batch that is sharded over devices stays where it
is, and the draws do not depend on how it is laid out. The arithmetic is torchvision's.

MixUp and CutMix are the exception: they mix every example, and its label, with the one before it (see `mix`).
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from inception_jax.data.augment import color, erasing, geometry, randaugment
from inception_jax.data.augment.mixing import MIXING, mix
from inception_jax.data.augment.normalization import normalize, to_unit

__all__ = ["MIXING", "augment", "mix", "normalize", "to_unit"]

# The transformations without resampling. The position of each is folded into its key: append new ones and never
# reorder, or every run would draw different numbers.
_TRANSFORMATIONS: dict[str, Callable[..., Array]] = {
    "pad_and_crop": geometry.pad_and_crop,
    "horizontal_flip": geometry.horizontal_flip,
    "brightness": color.brightness,
    "contrast": color.contrast,
    "saturation": color.saturation,
    "hue": color.hue,
    "cutout": erasing.cutout,
    "randaugment": randaugment.randaugment,
    "random_erasing": erasing.random_erasing,
    "vertical_flip": geometry.vertical_flip,
    "quarter_turns": geometry.quarter_turns,
}


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
    vertical_flip: float = 0.0,
    quarter_turns: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Applies every transformation whose strength is not 0 or (); see the function of the same name for each.

    The order is fixed: random resized crop, rotation and zoom, as one bilinear resampling; pad and crop; flips; quarter
    turns; brightness, contrast, saturation, hue (torchvision's ColorJitter shuffles these four); RandAugment; cutout;
    random erasing. Each has its own key, so that switching one on does not change the draws of the others.

    Args:
      key: PRNG key of the batch.
      images: float `(batch, height, width, channels)`, from 0 to 1.
      pad_and_crop: see `geometry.pad_and_crop`; pixels.
      random_resized_crop: `scale` of `geometry.draw_crops`: (smallest, largest) share of the area.
      aspect_ratio: `ratio` of `geometry.draw_crops`: (smallest, largest) width / height.
      horizontal_flip: see `geometry.horizontal_flip`; probability.
      rotation: see `geometry.rotation`; degrees.
      zoom: see `geometry.zoom`; largest relative change of scale.
      brightness, contrast, saturation, hue: see the functions of these names in `color`.
      cutout: see `erasing.cutout`; pixels.
      randaugment_ops, randaugment_magnitude: number and strength of operations, see `randaugment.randaugment`.
      random_erasing: see `erasing.random_erasing`; probability.
      vertical_flip, quarter_turns: see the functions of these names in `geometry`; probabilities.

    Returns:
      images of the same shape and dtype.

    Raises:
      UserError: a strength that is out of range or too large for the image size.
    """
    strengths: dict[str, tuple[float, ...]] = {  # in the order of application
        "pad_and_crop": (pad_and_crop,),
        "horizontal_flip": (horizontal_flip,),
        "vertical_flip": (vertical_flip,),
        "quarter_turns": (quarter_turns,),
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
        # One resampling blurs less than three and takes a third of the time; a transformation that is off draws the
        # identity.
        degrees = geometry.draw_rotations(rotation_key, images, rotation)
        factors = geometry.draw_zooms(zoom_key, images, zoom)
        matrices = geometry.similarity_matrices(degrees, factors)
        boxes = None
        if random_resized_crop:
            boxes = geometry.draw_crops(crop_key, images, random_resized_crop, aspect_ratio)
        images = geometry.affine_resample(images, matrices, boxes)
    for name, strength in strengths.items():
        if strength[0]:
            images = _TRANSFORMATIONS[name](jax.random.fold_in(key, numbers[name]), images, *strength)
    return images
