"""Arrays as pictures: every tile where it belongs, every value as the shade that it should have."""

import io

import numpy as np
import pytest
from PIL import Image

from inception_jax import feature_grid, filters, overlay
from inception_jax.errors import UserError
from inception_jax.inspection import Picture
from inception_jax.inspection.pictures import GAP, IMAGE, TILE

STEP = TILE + GAP


def tile(picture, row, column, size=TILE):
    top, left = GAP + row * (size + GAP), GAP + column * (size + GAP)
    return picture.array[top : top + size, left : left + size]


def test_maps_become_tiles_row_by_row_each_with_its_own_range():
    maps = np.zeros((2, 2, 5), np.float32)
    maps[0, 1, 0], maps[1, 0, 4] = 7, -2
    picture = feature_grid(maps)
    assert picture.array.shape == (2 * STEP + GAP, 3 * STEP + GAP)  # five tiles, three in a row
    half = TILE // 2
    assert tile(picture, 0, 0)[:half, half:].min() == 255
    assert tile(picture, 0, 0)[half:].max() == tile(picture, 0, 1).max() == 0
    last = tile(picture, 1, 1)
    assert (last[half:, :half].max(), last[:half].min()) == (0, 255)
    assert tile(picture, 1, 2).min() == 255  # no sixth channel
    assert (picture.array[:GAP].min(), picture.array[:, :GAP].min()) == (255, 255)


def test_maps_can_share_a_range_and_have_as_many_columns_as_wanted():
    maps = np.stack([np.full((40, 48), value) for value in (0.0, 1.0, 4.0)], -1)
    picture = feature_grid(maps[None], columns=1, per_channel=False)
    assert picture.array.shape == (3 * (40 + GAP) + GAP, 48 + 2 * GAP)
    assert [picture.array[GAP + 1 + row * (40 + GAP), 10] for row in range(3)] == [0, 64, 255]


def variables(inputs, outputs=2, **more):
    kernel = np.zeros((2, 2, inputs, outputs), np.float32)
    kernel[0, 0, 0, 0], kernel[1, 1, -1, 1] = 1, -1
    return {
        "params": {
            "conv1": {"conv": {"kernel": kernel, "bias": np.zeros(outputs)}},
            "fc": {"kernel": kernel[0, 0]},
            **more,
        }
    }


def test_kernels_that_read_colours_are_in_colour():
    picture = filters(variables(3), "conv1")
    half = TILE // 2
    assert tile(picture, 0, 0)[0, 0].tolist() == [255, 0, 0]
    assert tile(picture, 0, 1)[half, half].tolist() == [255, 255, 0]  # the least weight is blue's
    assert tile(picture, 0, 1)[0, 0].tolist() == [255, 255, 255]


def test_other_kernels_have_a_tile_for_every_pair_of_channels():
    picture = filters(variables(4), "conv1/conv")
    assert picture.array.shape == (4 * STEP + GAP, 2 * STEP + GAP)
    assert (tile(picture, 0, 0)[0, 0], tile(picture, 1, 0).max(), tile(picture, 3, 1)[-1, -1]) == (255, 0, 0)
    assert filters(variables(4), "conv1", limit=1).array.shape == (STEP + GAP, STEP + GAP)
    assert filters(variables(1, outputs=9), "conv1").array.shape == (3 * STEP + GAP, 3 * STEP + GAP)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv2", r"unknown layer 'conv2'\. Did you mean 'conv1'\? Known: block, conv1, fc"),
        ("conv1/norm", r"unknown layer 'conv1/norm'.* Known: conv1/conv"),
        ("fc", "layer 'fc' must have exactly one convolution kernel, but has none"),
        ("block", "but has 2: block/a, block/b"),
    ],
)
def test_a_layer_without_a_convolution_is_refused(layer, message):
    kernel = np.zeros((1, 1, 3, 3))
    two = variables(3, block={"a": {"kernel": kernel}, "b": {"kernel": kernel}})
    with pytest.raises(UserError, match=message):
        filters(two, layer)


def test_heat_is_blended_over_the_enlarged_image():
    image = np.full((4, 8, 3), 100, np.uint8)
    heat = np.zeros((2, 4), np.float32)
    heat[:, 2:] = 1
    picture = overlay(image, heat, strength=0.5)
    assert picture.array.shape == (IMAGE, 2 * IMAGE, 3)
    assert picture.array[0, 0].tolist() == [100, 100, 100]
    red = 0.5 * 100 / 255 + 0.5 * np.array([0.4796, 0.01583, 0.01055])  # turbo's last colour
    np.testing.assert_allclose(picture.array[0, -1] / 255, red, atol=0.003)


def test_images_of_every_kind_take_heat():
    heat = np.zeros((300, 200), np.float32)
    grey = np.full((300, 200), 0.2)
    assert overlay(grey, heat).array[5, 5].tolist() == [51, 51, 51]
    assert overlay(np.full((300, 200, 1), 51, np.uint8), heat).array[5, 5].tolist() == [51, 51, 51]


def test_arrays_of_other_shapes_are_refused():
    for maps in (np.zeros((2, 4, 4, 3)), np.zeros((4, 4)), np.zeros((4, 4, 0))):
        with pytest.raises(UserError, match="maps must have the shape"):
            feature_grid(maps)
    for image, heat in ((np.zeros((4, 4, 2)), np.zeros((4, 4))), (np.zeros((4, 4, 3)), np.zeros((1, 4, 4)))):
        with pytest.raises(UserError, match=r"such as heat\[0\]"):
            overlay(image, heat)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)])
def test_a_picture_is_saved_as_png_and_shows_itself(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    picture = Picture(array)
    for name in ("picture.png", "picture"):
        picture.save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), array)
    shown = picture._repr_png_()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), array)
    assert repr(picture) == "Picture(5x3)"
