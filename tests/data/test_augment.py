"""Augmentation against torchvision: its arithmetic at fixed strengths and its distributions; a batch on 8 devices."""

import functools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from peers import import_torchvision
from scipy import stats

from inception_jax.config import default_config
from inception_jax.data import augment as aug
from inception_jax.errors import UserError

STRENGTHS = {
    "pad_and_crop": 4,
    "random_resized_crop": (0.08, 1.0),
    "horizontal_flip": 0.5,
    "rotation": 15.0,
    "zoom": 0.2,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "cutout": 8,
}
KEY = jax.random.key(0)
affine_resample = jax.jit(aug.affine_resample)  # at once, rather than an operation at a time
similarity_matrices = jax.jit(aug.similarity_matrices)


def augment(key, images, **strengths):
    return jax.jit(functools.partial(aug.augment, **strengths))(key, images)


def pictures(batch=4, height=17, width=24, channels=3, dtype="float32"):
    return jnp.asarray(np.random.default_rng(0).random((batch, height, width, channels)), dtype)


def torch_functional():
    """torchvision's functional, over a batch with one parameter for each image, channels last."""
    import_torchvision()
    import torch
    from torchvision.transforms import functional

    def over(name, images, *columns, **options):
        results = [
            getattr(functional, name)(torch.from_numpy(np.moveaxis(np.asarray(image), -1, 0).copy()), *row, **options)
            for image, *row in zip(images, *columns, strict=True)
        ]
        return np.stack([np.moveaxis(result.numpy(), 0, -1) for result in results])

    return over


# --- the strengths ----------------------------------------------------------------------------------------------


def test_takes_the_fields_of_the_config():
    fields = default_config().data.augment.to_dict()
    assert set(fields) == {*STRENGTHS, "aspect_ratio"}
    images = pictures()
    np.testing.assert_array_equal(augment(KEY, images, **fields), images)  # by default, nothing is on


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STRENGTHS)
def test_each_changes_images_and_keeps_shape_dtype_and_range(name, channels):
    images = pictures(channels=channels)
    changed = augment(KEY, images, **{name: STRENGTHS[name]})
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert changed.min() >= -1e-6
    assert changed.max() <= 1 + 1e-6
    colourless = channels == 1 and name in ("saturation", "hue")
    assert bool(jnp.array_equal(changed, images)) == colourless


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_all_together_keep_the_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        images = pictures(dtype=dtype)
        changed = augment(KEY, images, **STRENGTHS)
        assert changed.dtype == dtype
        assert jnp.isfinite(changed).all()


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_draws_for_each_example_from_the_key(name):
    images = jnp.repeat(pictures(batch=1), 16, axis=0)
    apply = jax.jit(functools.partial(aug.augment, images=images, **{name: STRENGTHS[name]}))
    first = np.asarray(apply(KEY))
    np.testing.assert_array_equal(apply(KEY), first)
    assert not np.array_equal(apply(jax.random.key(1)), first)
    assert len(np.unique(first.reshape(16, -1), axis=0)) > 1


def test_one_strength_leaves_the_draws_of_the_others():
    images = np.ones((8, 16, 16, 1), np.float32)
    alone = augment(KEY, images, cutout=8)
    with_flip = augment(KEY, images, cutout=8, horizontal_flip=0.5, saturation=0.5)
    np.testing.assert_array_equal(alone, with_flip)  # a flipped or saturated white image is the same white image
    turned = augment(KEY, images, rotation=30.0)
    np.testing.assert_allclose(augment(KEY, images, rotation=30.0, cutout=8), np.where(alone == 0, 0, turned))


# --- geometry ---------------------------------------------------------------------------------------------------


def test_resampling_at_the_identity_changes_no_bit():
    images = pictures()
    identity = similarity_matrices(jnp.zeros(4), jnp.ones(4))
    boxes = jnp.tile(jnp.array([0.0, 0.0, 17.0, 24.0]), (4, 1))
    np.testing.assert_array_equal(affine_resample(images, identity), images)
    np.testing.assert_array_equal(affine_resample(images, identity, boxes), images)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rotation_and_zoom_equal_torchvision(dtype):
    affine = torch_functional()
    from torchvision.transforms import InterpolationMode

    degrees, factors = [10.0, -33.0, 90.0, 0.0], [1.0, 1.2, 0.8, 0.5]
    with jax.enable_x64(dtype == "float64"):
        images = pictures(dtype=dtype)
        ours = affine_resample(images, similarity_matrices(jnp.array(degrees), jnp.array(factors)))
        assert ours.dtype == dtype
    # torchvision's affine turns clockwise, its rotate (and ours) counter-clockwise. It computes places in float32.
    angles = [-angle for angle in degrees]
    none = [[0, 0]] * 4
    theirs = affine("affine", images, angles, none, factors, none, interpolation=InterpolationMode.BILINEAR)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    turned = affine_resample(pictures(), similarity_matrices(jnp.array(degrees), jnp.ones(4)))
    rotated = affine("rotate", pictures(), degrees, interpolation=InterpolationMode.BILINEAR)
    np.testing.assert_allclose(turned, rotated, atol=2e-5)


def test_cropping_equals_torchvision():
    over = torch_functional()
    boxes = np.array([[0, 0, 17, 24], [3, 5, 8, 11], [16, 0, 1, 1], [2, 20, 15, 4]])
    identity = similarity_matrices(jnp.zeros(4), jnp.ones(4))
    ours = affine_resample(pictures(), identity, jnp.asarray(boxes, jnp.float32))
    theirs = over("resized_crop", pictures(), *boxes.T.tolist(), size=[17, 24])
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_crop_and_rotation_in_one_equal_crop_then_rotation():
    # The pixels of a linear ramp are resampled exactly, however often; the zeros outside do not blend in far inside.
    y, x = np.mgrid[:33, :33] / 64
    images = np.repeat((y + x)[None, :, :, None], 3, axis=0).astype(np.float32)
    boxes = jnp.array([[4.0, 2.0, 20.0, 16.0], [0.0, 0.0, 33.0, 33.0], [10.0, 10.0, 12.0, 12.0]])
    identity = similarity_matrices(jnp.zeros(3), jnp.ones(3))
    similar = similarity_matrices(jnp.array([20.0, -10.0, 45.0]), jnp.array([1.1, 0.9, 1.0]))
    together = affine_resample(images, similar, boxes)
    one_by_one = affine_resample(affine_resample(images, identity, boxes), similar)
    np.testing.assert_allclose(together[:, 9:24, 9:24], one_by_one[:, 9:24, 9:24], atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 48, (0.5, 1.0), (3 / 4, 4 / 3)),  # often ten attempts fail
        (48, 20, (0.3, 1.0), (1.0, 2.0)),
    ],
)
def test_crops_are_distributed_as_torchvision_draws_them(height, width, scale, ratio):
    import_torchvision()
    import torch
    from torchvision.transforms import RandomResizedCrop

    count = 4000
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    draw = jax.jit(functools.partial(aug.draw_crops, scale=scale, ratio=ratio))
    ours = np.asarray(draw(KEY, jnp.zeros((count, height, width, 1))), np.float64)
    top, left, box_height, box_width = ours.T
    assert np.array_equal(ours, np.round(ours))
    assert (ours >= [0, 0, 1, 1]).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    for samples in (
        *zip(ours.T, theirs.T, strict=True),
        (box_height * box_width, theirs[:, 2] * theirs[:, 3]),
        (box_width / box_height, theirs[:, 3] / theirs[:, 2]),
    ):
        assert stats.ks_2samp(*samples, method="asymp").pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "ratio"),
    [(32, 32, (3 / 4, 4 / 3)), (32, 32, (3.0, 4.0)), (30, 61, (0.2, 0.3)), (61, 30, (1.0, 1.0))],
)
def test_a_crop_that_never_fits_becomes_the_central_one(height, width, ratio):
    import_torchvision()
    import torch
    from torchvision.transforms import RandomResizedCrop

    scale = (1.5, 2.0)  # of the area: never fits
    theirs = RandomResizedCrop.get_params(torch.zeros(1, height, width), list(scale), list(ratio))
    ours = jax.jit(functools.partial(aug.draw_crops, scale=scale, ratio=ratio))(KEY, jnp.zeros((3, height, width, 1)))
    np.testing.assert_array_equal(ours, [theirs] * 3)


def test_pad_and_crop_gives_every_window_of_the_padded_image():
    image = np.arange(1, 31, dtype=np.float32).reshape(1, 5, 6, 1)
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    drawn = np.asarray(aug.pad_and_crop(KEY, jnp.asarray(np.repeat(image, 500, axis=0)), 2))
    counts = {}
    for crop in drawn:
        counts[crop.tobytes()] = counts.get(crop.tobytes(), 0) + 1
    assert counts.keys() == windows
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_horizontal_flip(probability):
    images = pictures(batch=1000, height=2, width=5)
    flipped = np.asarray(aug.horizontal_flip(KEY, images, probability))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert stats.binomtest(int(mirrored.sum()), 1000, probability).pvalue > 1e-3


def test_angles_and_factors_fill_their_ranges():
    images = jnp.zeros((4000, 1, 1, 1))
    assert stats.kstest(aug.draw_rotations(KEY, images, 15.0), stats.uniform(-15, 30).cdf).pvalue > 1e-3
    assert stats.kstest(aug.draw_zooms(KEY, images, 0.2), stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("amount", [1.0, -0.1])
def test_zoom_to_nothing_is_refused(amount):
    with pytest.raises(UserError, match="below 1"):
        aug.zoom(KEY, pictures(), amount)


# --- colour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_equal_torchvision(name, channels):
    over = torch_functional()
    factors = [0.0, 0.6, 1.0, 1.7]
    images = pictures(channels=channels)
    ours = getattr(aug, f"adjust_{name}")(images, jnp.array(factors))
    np.testing.assert_allclose(ours, over(f"adjust_{name}", images, factors), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_equals_torchvision(channels):
    over = torch_functional()
    images = np.array(pictures(channels=channels))
    images[:, :4] = images[:, :4, :, :1]  # grey
    images[:, 4:8] = np.round(images[:, 4:8])  # the corners of the colour cube: two channels are the largest
    images = jnp.asarray(images)
    shifts = [0.0, 0.1, -0.35, 0.5]
    ours = aug.adjust_hue(images, jnp.array(shifts))
    np.testing.assert_allclose(ours, over("adjust_hue", images, shifts), atol=5e-6)


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_brightness_factors_fill_torchvisions_range(strength):
    grey = jnp.full((4000, 1, 1, 1), 0.25)
    factors = np.asarray(aug.brightness(KEY, grey, strength)).ravel() / 0.25
    low = max(0, 1 - strength)
    assert stats.kstest(factors, stats.uniform(low, 1 + strength - low).cdf).pvalue > 1e-3


# --- cutout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_cutout_zeroes_a_square_around_any_pixel(size):
    height, width = 6, 7
    squares = set()
    for y in range(height):
        for x in range(width):
            image = np.ones((height, width, 2), np.float32)
            top, left = y - size // 2, x - size // 2
            image[max(0, top) : top + size, max(0, left) : left + size] = 0
            squares.add(image.tobytes())
    drawn = np.asarray(aug.cutout(KEY, jnp.ones((1000, height, width, 2)), size))
    assert {image.tobytes() for image in drawn} == squares


# --- devices ----------------------------------------------------------------------------------------------------


def test_eight_devices_equal_one_and_exchange_nothing():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    images = pictures(batch=16, height=16, width=16)
    step = jax.jit(functools.partial(aug.augment, **STRENGTHS))
    alone = step(KEY, images)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    key = jax.device_put(KEY, NamedSharding(mesh, P()))
    sharded = jax.device_put(images, sharding)
    together = step(key, sharded)
    assert together.sharding.is_equivalent_to(sharding, images.ndim)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    program = step.lower(key, sharded).compile().as_text()
    for exchange in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert exchange not in program


# --- scale of the values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_normalizations(channels):
    raw = np.random.default_rng(0).integers(0, 256, (4, 5, 6, channels), np.uint8)
    images = aug.to_unit(jnp.asarray(raw), "float32")
    assert images.dtype == np.float32
    exact = raw / 255
    mean, std = exact.mean(axis=(0, 1, 2)), exact.std(axis=(0, 1, 2))
    normalize = functools.partial(aug.normalize, images, mean=mean, std=std)
    np.testing.assert_allclose(normalize(normalization="none"), raw, rtol=1e-6)
    np.testing.assert_allclose(normalize(normalization="unit"), exact, rtol=1e-6)
    np.testing.assert_allclose(normalize(normalization="mean"), exact - mean, atol=1e-6)
    np.testing.assert_allclose(normalize(normalization="mean_std"), (exact - mean) / std, atol=1e-5)
    own = exact.reshape(4, -1)
    expected = (own - own.mean(axis=1, keepdims=True)) / own.std(axis=1, keepdims=True)
    np.testing.assert_allclose(
        normalize(normalization="per_image"), expected.reshape(exact.shape), rtol=1e-5, atol=1e-5
    )


def test_constant_images_and_channels_are_centred():
    images = jnp.full((2, 4, 4, 3), 0.5)
    np.testing.assert_array_equal(aug.normalize(images, normalization="per_image"), np.zeros_like(images))
    centred = aug.normalize(images, normalization="mean_std", mean=(0.5, 0.25, 0.5), std=(0.0, 0.0, 0.1))
    np.testing.assert_allclose(centred[0, 0, 0], [0, 0.25, 0])


def test_the_smallest_deviation_of_an_image():
    images = jnp.zeros((1, 4, 4, 3)).at[0, 0, 0, 0].set(0.1)
    assert images.std() < 1 / math.sqrt(48)
    normalized = aug.normalize(images, normalization="per_image")
    np.testing.assert_allclose(normalized, (images - images.mean()) * math.sqrt(48), rtol=1e-5)


def test_normalization_mistakes():
    images = pictures()
    with pytest.raises(UserError, match="Did you mean 'mean_std'"):
        aug.normalize(images, normalization="mean_sdt")
    with pytest.raises(UserError, match=r"mean has shape \(1,\).*3 channels"):
        aug.normalize(images, normalization="mean", mean=(0.5,))
    with pytest.raises(UserError, match="std has shape"):
        aug.normalize(images, normalization="mean_std", mean=(0.5, 0.5, 0.5))
