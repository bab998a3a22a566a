"""Images of a data set side by side: unchanged, and augmented as for training."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from PIL import Image, ImageDraw, ImageFont

from inception_jax.config import Config, default_config
from inception_jax.data import streaming
from inception_jax.data.dataset import Dataset, Split
from inception_jax.experiment import Inputs, own_augmentation
from inception_jax.inspection.pictures import Picture
from inception_jax.steps.state import stream

TILE = 96  # minimum side of a tile, pixels: smaller images are enlarged by an integer factor
LARGEST_TILE = 224  # larger images are downscaled
GAP = 4  # pixels
CAPTION = 150  # width of the class name column, pixels


def contact_sheet(dataset: Dataset, config: Config, *, split: str = "train", rows: int = 8, draws: int = 5) -> Picture:
    """One row per example: its class, the image, and `draws` samples of the config's augmentation.

    The examples are spread over the classes and determined by config.seed; one in four is grayscale if there are any.
    Augmentation is the same as in training, without the normalization that follows it. Without augmentation, further
    images of the same class take the place of the samples.

    Args:
      config: a run's config, of which seed and data.augment matter.

    Raises:
      UserError: there is no such split.
    """
    part = dataset.splits[split]
    all_labels = part.all_labels()
    positions = _chosen(all_labels, part.grayscale(), rows, config.seed)
    images, labels = part.gather(positions)
    names = [dataset.shown_names[label] for label in labels]
    if config.data.augment == default_config().data.augment:
        others = _others(all_labels, positions, draws, config.seed)
        return sheet(names, _columns(part, images, positions, others))
    inputs = Inputs(dataset.class_names, dataset.image_shape, (0.0,), (1.0,))
    strengths = dict(config.data.augment)
    prepare = jax.jit(inputs.augmenter(strengths, "unit", jnp.float32, *own_augmentation(config, {})))
    mix = inputs.mixer(strengths)
    columns = {"image": images}
    for draw in range(draws):
        taken = images
        if config.data.augment.crop_originals and isinstance(part, streaming.StreamingSplit):
            crop = streaming.RandomCrop(config.seed, strengths["random_resized_crop"], strengths["aspect_ratio"])
            taken = np.stack([part.decode(int(row), partial(crop.draw, draw, int(row))) for row in positions])
        key, mix_key = jax.random.split(jax.random.fold_in(stream(config.seed, "preview"), draw))
        augmented = prepare(key, jnp.asarray(taken))
        if mix:
            augmented, _ = mix(mix_key, augmented, jnp.asarray(labels))
        columns[f"draw {draw + 1}"] = np.asarray(jnp.clip(jnp.round(augmented * 255), 0, 255).astype(jnp.uint8))
    return sheet(names, columns)


def _others(labels: np.ndarray, positions: np.ndarray, number: int, seed: int) -> np.ndarray:
    """For each example, positions of `number` others of its class, none twice; -1 where there are no more."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.setdiff1d(np.arange(len(labels)), positions))
    left = {label: list(order[labels[order] == label]) for label in np.unique(labels[positions])}
    return np.array([[left[label].pop() if left[label] else -1 for _ in range(number)] for label in labels[positions]])


def _columns(part: Split, images: np.ndarray, positions: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """The images, and columns of others, which are blank where there are none."""
    columns = {"image": images}
    for number, column in enumerate(others.T, start=2):
        found, _ = part.gather(np.where(column < 0, positions, column))
        columns[f"image {number}"] = np.where((column < 0)[:, None, None, None], np.uint8(255), found)
    return columns


def _chosen(labels: np.ndarray, gray: np.ndarray | None, number: int, seed: int) -> np.ndarray:
    """Positions of examples, from as many classes as possible."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    if gray is not None and gray.any() and not gray.all():
        kinds = [order[gray[order]][: max(1, number // 4)], order[~gray[order]]]
    else:
        kinds = [order]
    chosen: list[int] = []
    for candidates in kinds:
        # The first of each class, then the rest.
        _, first = np.unique(labels[candidates], return_index=True)
        rest = np.setdiff1d(np.arange(len(candidates)), first)
        chosen += candidates[np.concatenate([np.sort(first), rest])].tolist()
    return np.array(chosen[:number])


def sheet(captions: Sequence[str], columns: Mapping[str, np.ndarray]) -> Picture:
    """Rows of images beside their captions, below the columns' names.

    Args:
      columns: uint8 (rows, height, width, 1 or 3) each; all are shown at the size of the first.
    """
    height, width = next(iter(columns.values())).shape[1:3]
    largest = max(height, width)
    scale = -(-TILE // largest) if largest < TILE else min(1.0, LARGEST_TILE / largest)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    header = 24
    page = Image.new(
        "RGB", (CAPTION + len(columns) * (size[0] + GAP), header + len(captions) * (size[1] + GAP)), "white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, (name, images) in enumerate(columns.items()):
        left = CAPTION + column * (size[0] + GAP)
        draw.text((left, 4), name, fill="black", font=font)
        for row, image in enumerate(images):
            picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
            page.paste(picture.resize(size, resampling), (left, header + row * (size[1] + GAP)))
    for row, caption in enumerate(captions):
        draw.text((6, header + row * (size[1] + GAP) + 4), _wrapped(caption, draw, font), fill="black", font=font)
    return Picture(np.array(page))


def _wrapped(name: str, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """Wraps the name to the caption column; words that are too long are truncated."""
    lines = [""]
    for word in name.replace("_", " ").split():
        while draw.textlength(word, font=font) > CAPTION - 12:
            word = word[:-1]
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= CAPTION - 12:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines[:4])
