"""Turns arrays into pictures: maps and kernels as tiles, heat maps over images."""

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from inception_jax import files
from inception_jax.errors import UserError, unknown_name

# Smallest sides of a tile and of an image under a heat map, pixels; smaller ones are enlarged by an integer factor.
TILE = 32
IMAGE = 192
GAP = 2  # between tiles, pixels


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that notebooks display.

    Attributes:
      array: uint8, (height, width) in grayscale or (height, width, 3).
    """

    array: np.ndarray

    def save(self, path: str | Path) -> None:
        """Saves the picture in the format of the suffix, by default PNG.

        Raises:
          UserError: pictures cannot be saved in the format of the suffix.
          WriteError: the file cannot be written.
        """
        path = files.expand(path)
        kind = Image.registered_extensions().get(path.suffix.lower()) if path.suffix else "PNG"
        if kind not in Image.SAVE:
            raise UserError(f"{path} is not allowed for a picture: it must end in .png, .jpg or another image suffix")
        files.write_bytes(path, self._encoded(kind))

    def _repr_png_(self) -> bytes:
        return self._encoded("PNG")

    def _encoded(self, kind: str) -> bytes:
        page = io.BytesIO()
        Image.fromarray(self.array).save(page, format=kind)
        return page.getvalue()

    def __repr__(self) -> str:
        height, width = self.array.shape[:2]
        return f"Picture({width}x{height})"


def feature_grid(maps: Any, *, columns: int | None = None, per_channel: bool = True) -> Picture:
    """Draws the maps of one image as grayscale tiles, one per channel, row by row.

    Args:
      maps: (height, width, channels), or (1, height, width, channels).
      columns: tiles in a row; None: for a picture that is about square.
      per_channel: whether black and white are the minimum and maximum of each channel, or else of all channels.

    Raises:
      UserError: the array has another shape.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3 or 0 in maps.shape:
        raise UserError(
            f"maps must have the shape (height, width, channels), not {maps.shape}: of a batch, give one image's, "
            "such as maps[0]"
        )
    axes = (0, 1) if per_channel else None
    tiles = _to_gray(maps, axes).transpose(2, 0, 1)
    return Picture(_tile(tiles, columns or math.ceil(math.sqrt(len(tiles)))))


def filters(variables: Mapping[str, Any], layer: str, *, limit: int = 16) -> Picture:
    """Draws the kernels of a convolution as tiles; with three input channels in color, one tile per output channel.

    For other convolutions, each pair of input and output channels has a grayscale tile: a row for each input, a column
    for each output. Black is the smallest weight of the output channel, and white its largest.

    Args:
      layer: path of the convolution, or of a module that contains one convolution, such as "conv1".
      limit: maximum number of rows and columns of grayscale tiles.

    Raises:
      UserError: there is no such layer, or it does not contain exactly one convolution.
    """
    kernel = np.asarray(_kernel(variables["params"], layer), np.float32)
    tiles = _to_gray(kernel, (0, 1, 2)).transpose(3, 2, 0, 1)  # outputs, inputs, height, width
    if tiles.shape[1] == 3:
        return Picture(_tile(tiles.transpose(0, 2, 3, 1), math.ceil(math.sqrt(len(tiles)))))
    if tiles.shape[1] == 1:
        return Picture(_tile(tiles[:, 0], math.ceil(math.sqrt(len(tiles)))))
    tiles = tiles[:limit, :limit].swapaxes(0, 1)
    return Picture(_tile(tiles.reshape(-1, *tiles.shape[2:]), tiles.shape[1]))


def overlay(image: Any, heat: Any, *, strength: float = 0.6) -> Picture:
    """Overlays a heat map on its image: unchanged at 0, then through blue, green and yellow to red at 1.

    Args:
      image: uint8 or 0 to 1, (height, width, 1 or 3) or (height, width); small ones are enlarged.
      heat: 0 to 1, (height, width), of any size; it is resized bilinearly to the image's size.
      strength: opacity of the colors where the heat is 1.

    Raises:
      UserError: the arrays have other shapes.
    """
    image, heat = np.asarray(image), np.asarray(heat, np.float32)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or heat.ndim != 2:
        raise UserError(
            f"image and heat must have the shapes (height, width, 1 or 3) and (height, width), not {image.shape} and "
            f"{heat.shape}: of a batch, give one image's, such as heat[0]"
        )
    pixels = image / 255 if image.dtype == np.uint8 else np.clip(image, 0, 1)
    pixels = _enlarge(pixels, (0, 1), IMAGE)
    height, width = pixels.shape[:2]
    heat = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
    opacity = strength * np.clip(heat, 0, 1)[..., None]
    mixed = (1 - opacity) * pixels + opacity * matplotlib.colormaps["turbo"](heat)[..., :3]
    return Picture(_to_bytes(mixed))


def _to_gray(values: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Scales values from 0 (minimum over the axes) to 255 (maximum); constant values become 0."""
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    return _to_bytes((values - low) / np.where(high > low, high - low, 1))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * values).astype(np.uint8)


def _enlarge(values: np.ndarray, axes: tuple[int, int], side: int) -> np.ndarray:
    """Repeats every pixel along both axes until neither is shorter than `side`."""
    times = math.ceil(side / min(values.shape[axis] for axis in axes))
    return values.repeat(times, axes[0]).repeat(times, axes[1])


def _tile(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Arranges tiles (number, height, width, ...) row by row, with white lines between them."""
    tiles = _enlarge(tiles, (1, 2), TILE)
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    page = np.full((rows * height + GAP, columns * width + GAP, *tiles.shape[3:]), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * height + GAP, (index % columns) * width + GAP
        page[top : top + height - GAP, left : left + width - GAP] = tile
    return page


def _kernel(params: Mapping[str, Any], layer: str) -> Any:
    node: Any = params
    for position, name in enumerate(parts := layer.split("/")):
        if not isinstance(node, Mapping) or name not in node:
            known = node if isinstance(node, Mapping) else ()
            raise unknown_name("layer", layer, ["/".join((*parts[:position], other)) for other in known])
        node = node[name]
    kernels = list(_kernels(node, layer))
    if len(kernels) != 1:
        found = f"{len(kernels)}: {', '.join(name for name, _ in kernels)}" if kernels else "none"
        raise UserError(f"layer {layer!r} must have exactly one convolution kernel, but has {found}")
    return kernels[0][1]


def _kernels(node: Any, path: str) -> Any:
    """(path, kernel) of all convolutions in a node."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name == "kernel" and np.ndim(value) == 4:
            yield path, value
        yield from _kernels(value, f"{path}/{name}")
