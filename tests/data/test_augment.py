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
from inception_jax.data.augment import color, erasing, geometry, mixing, randaugment
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
    "randaugment_ops": 1,
    "random_erasing": 0.5,
    "vertical_flip": 0.5,
}
KEY = jax.random.key(0)
BATCH = 16  # where any number of images will do, so that programs are shared
affine_resample = jax.jit(geometry.affine_resample)  # at once, rather than an operation at a time
similarity_matrices = jax.jit(geometry.similarity_matrices)
apply_operations = jax.jit(randaugment.apply_operations)


adjust = {
    name: jax.jit(getattr(color, f"adjust_{name}"))
    for name in ("brightness", "contrast", "saturation", "sharpness", "hue")
}


@functools.cache
def augmenting(**strengths):
    return jax.jit(functools.partial(aug.augment, **strengths))


def augment(key, images, **strengths):
    return augmenting(**strengths)(key, images)


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
    elsewhere = {"crop_originals", "before", "after", *aug.MIXING}
    # quarter_turns needs square images and has tests of its own.
    assert set(fields) == {*STRENGTHS, "aspect_ratio", "randaugment_magnitude", "quarter_turns", *elsewhere}
    fields = {name: fields[name] for name in fields.keys() - elsewhere}
    images = pictures()
    np.testing.assert_array_equal(augment(KEY, images, **fields), images)  # by default, nothing is on


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STRENGTHS)
def test_each_changes_images_and_keeps_shape_dtype_and_range(name, channels):
    images = pictures(BATCH, channels=channels)
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
        images = pictures(BATCH, dtype=dtype)
        assert jax.eval_shape(augmenting(**STRENGTHS), KEY, images).dtype == dtype
    if dtype != "float64":  # where nothing is too large or too small that is not so in float32
        assert jnp.isfinite(augment(KEY, images, **STRENGTHS)).all()


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_draws_for_each_example_from_the_key(name):
    images = np.repeat(pictures(batch=1), BATCH, axis=0)
    apply = augmenting(**{name: STRENGTHS[name]})
    first = np.asarray(apply(KEY, images))
    np.testing.assert_array_equal(apply(KEY, images), first)
    assert not np.array_equal(apply(jax.random.key(1), images), first)
    assert len(np.unique(first.reshape(BATCH, -1), axis=0)) > 1


def test_one_strength_leaves_the_draws_of_the_others():
    images = np.ones((BATCH, 17, 24, 1), np.float32)
    alone = augment(KEY, images, cutout=8)
    with_flip = augment(KEY, images, cutout=8, horizontal_flip=0.5, saturation=0.5)
    np.testing.assert_array_equal(alone, with_flip)  # a flipped or saturated white image is the same white image
    turned = augment(KEY, images, rotation=30.0)
    np.testing.assert_allclose(augment(KEY, images, rotation=30.0, cutout=8), np.where(alone == 0, 0, turned))


@pytest.mark.parametrize(
    ("number", "transform"),
    [(1, geometry.horizontal_flip), (6, erasing.cutout), (8, erasing.random_erasing), (9, geometry.vertical_flip)],
)
def test_keys_never_change(number, transform):
    # Another number changes the result of every run that anybody has made with this augmentation.
    name, images = transform.__name__, pictures(BATCH)
    key = jax.random.fold_in(jax.random.split(KEY)[1], number)
    expected = jax.jit(transform, static_argnums=2)(key, images, STRENGTHS[name])
    np.testing.assert_array_equal(augment(KEY, images, **{name: STRENGTHS[name]}), expected)


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
    draw = jax.jit(functools.partial(geometry.draw_crops, scale=scale, ratio=ratio))
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
    draw = jax.jit(functools.partial(geometry.draw_crops, scale=scale, ratio=ratio))
    ours = draw(KEY, jnp.zeros((3, height, width, 1)))
    np.testing.assert_array_equal(ours, [theirs] * 3)


def test_pad_and_crop_gives_every_window_of_the_padded_image():
    image = np.arange(1, 31, dtype=np.float32).reshape(1, 5, 6, 1)
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    drawn = np.asarray(jax.jit(geometry.pad_and_crop, static_argnums=2)(KEY, np.repeat(image, 500, axis=0), 2))
    counts = {}
    for crop in drawn:
        counts[crop.tobytes()] = counts.get(crop.tobytes(), 0) + 1
    assert counts.keys() == windows
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("flip", "axis"), [(geometry.horizontal_flip, 2), (geometry.vertical_flip, 1)])
def test_flips(flip, axis, probability):
    images = pictures(batch=1000, height=2, width=5)
    flipped = np.asarray(jax.jit(flip)(KEY, images, probability))
    mirrored = (flipped == np.flip(images, axis)).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert stats.binomtest(int(mirrored.sum()), 1000, probability).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.75, 1.0])
def test_quarter_turns(probability):
    images = pictures(batch=2000, height=3, width=3)
    turned = np.asarray(augment(KEY, images, quarter_turns=probability)) if probability else np.asarray(images)
    found = [(turned == np.rot90(images, turns, axes=(1, 2))).all(axis=(1, 2, 3)).sum() for turns in range(4)]
    assert sum(found) == 2000
    expected = 2000 * np.array([1 - probability, *[probability / 3] * 3])
    kept = expected > 0
    assert not np.asarray(found)[~kept].any()
    assert stats.chisquare(np.asarray(found)[kept], expected[kept]).pvalue > 1e-3 or kept.sum() == 1


def test_quarter_turns_need_square_images():
    with pytest.raises(UserError, match="quarter_turns is not allowed for images of 17x24 pixels: they must be square"):
        augment(KEY, pictures(), quarter_turns=0.5)


def test_angles_and_factors_fill_their_ranges():
    images = jnp.zeros((4000, 1, 1, 1))
    assert stats.kstest(geometry.draw_rotations(KEY, images, 15.0), stats.uniform(-15, 30).cdf).pvalue > 1e-3
    assert stats.kstest(geometry.draw_zooms(KEY, images, 0.2), stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("amount", [1.0, -0.1])
def test_zoom_to_nothing_is_refused(amount):
    with pytest.raises(UserError, match="below 1"):
        geometry.zoom(KEY, pictures(), amount)


# --- colour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_colour_factors_equal_torchvision(name, channels):
    over = torch_functional()
    factors = [0.0, 0.6, 1.0, 1.7]
    images = pictures(channels=channels)
    ours = adjust[name](images, jnp.array(factors))
    np.testing.assert_allclose(ours, over(f"adjust_{name}", images, factors), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_equals_torchvision(channels):
    over = torch_functional()
    images = np.array(pictures(channels=channels))
    images[:, :4] = images[:, :4, :, :1]  # grey
    images[:, 4:8] = np.round(images[:, 4:8])  # the corners of the colour cube: two channels are the largest
    images = jnp.asarray(images)
    shifts = [0.0, 0.1, -0.35, 0.5]
    ours = adjust["hue"](images, jnp.array(shifts))
    np.testing.assert_allclose(ours, over("adjust_hue", images, shifts), atol=5e-6)


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_brightness_factors_fill_torchvisions_range(strength):
    grey = jnp.full((4000, 1, 1, 1), 0.25)
    factors = np.asarray(color.brightness(KEY, grey, strength)).ravel() / 0.25
    low = max(0, 1 - strength)
    assert stats.kstest(factors, stats.uniform(low, 1 + strength - low).cdf).pvalue > 1e-3


# --- RandAugment ------------------------------------------------------------------------------------------------


def byte_pictures(batch, height=23, width=30, channels=3):
    """Noise in the first half of each picture, a smooth ramp of few levels in the other; uint8."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, height, width, channels), np.uint8)
    ramp = np.linspace(40, 200, width // 2).astype(np.uint8)[:, None] + rng.integers(0, 40, channels, np.uint8)
    images[:, :, -(width // 2) :] = ramp
    return images


def torch_name(name):
    return "".join(part.capitalize() for part in name.split("_")).replace("Autocontrast", "AutoContrast")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_equal_torchvisions_at_every_magnitude(name, channels):
    import_torchvision()
    import torch
    from torchvision.transforms import InterpolationMode, autoaugment

    images = byte_pictures(62, channels=channels)
    magnitudes, signed = autoaugment.RandAugment()._augmentation_space(31, images.shape[1:3])[torch_name(name)]
    theirs, strengths = [], []
    for image, magnitude, sign in zip(images, [*range(31)] * 2, [1] * 31 + [-1] * 31, strict=True):
        value = float(magnitudes[magnitude]) * (sign if signed else 1) if magnitudes.ndim else 0.0
        picture = torch.from_numpy(np.moveaxis(image, -1, 0).copy())
        changed = autoaugment._apply_op(picture, torch_name(name), value, InterpolationMode.NEAREST, None)
        theirs.append(np.moveaxis(changed.numpy(), 0, -1))
        index = list(randaugment.OPERATIONS).index(name)
        strength = randaugment.operation_strengths(magnitude, *images.shape[1:3])[index]
        strengths.append(strength * (sign if randaugment.OPERATIONS[name] else 1))
    operations = jnp.full(62, list(randaugment.OPERATIONS).index(name))
    ours = apply_operations(aug.to_unit(jnp.asarray(images), "float32"), operations, jnp.array(strengths))
    distances = np.abs(255 * np.asarray(ours) - np.array(theirs, np.float32))
    if name in ("shear_x", "shear_y"):  # places half-way between two pixels go to either of them, by rounding
        assert (distances > 1e-3).mean() < 0.01
    else:
        # It cuts off what it has blended or stretched to whole levels, and before that grey and smoothed images, too.
        levels = {"brightness": 1, "autocontrast": 1, "color": 2, "contrast": 2, "sharpness": 2}.get(name, 0)
        assert distances.max() < levels + 1e-3


@pytest.mark.parametrize("name", ["posterize", "solarize", "autocontrast", "equalize"])
def test_operations_on_plain_pictures_equal_torchvision(name):
    """Even ones, ones of two levels, and such as are too small to equalize."""
    over = torch_functional()
    plain = np.zeros((5, 20, 20, 3), np.uint8)
    plain[1] = 255
    plain[2] = [3, 128, 250]
    plain[3, :9] = [7, 200, 255]
    plain[4, 0, 0] = 90
    options = {"posterize": [3, 8, 1, 4, 0], "solarize": [0.0, 255.0, 128.0, 200.0, 90.0]}.get(name)
    arguments = () if options is None else (options,)
    apply = jax.jit(getattr(color, name))
    for images in (plain, plain[:, :2, :1]):
        theirs = over(name, images, *arguments)
        ours = apply(aug.to_unit(jnp.asarray(images), "float32"), *map(jnp.array, arguments))
        np.testing.assert_allclose(255 * ours, theirs, atol=1e-3 if name != "autocontrast" else 1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (9, 2), (3, 3)])
def test_sharpness_of_tiny_pictures_equals_torchvisions(height, width):
    images, factors = pictures(height=height, width=width), [0.0, 0.6, 1.0, 1.7]
    theirs = torch_functional()("adjust_sharpness", images, factors)
    np.testing.assert_allclose(adjust["sharpness"](images, jnp.array(factors)), theirs, atol=1e-6)


def test_operations_are_drawn_uniformly_with_either_sign():
    images = jnp.asarray(byte_pictures(1, 18, 18) / np.float32(255))
    outcomes = [
        (index, sign, 1 / 28 if signed else 1 / 14)
        for index, (name, signed) in enumerate(randaugment.OPERATIONS.items())
        for sign in ((1, -1) if signed else (1,))
    ]
    operations, signs, probabilities = (np.array(column) for column in zip(*outcomes, strict=True))
    strengths = np.array(randaugment.operation_strengths(20, 18, 18), np.float32)[operations] * signs
    possible = apply_operations(jnp.repeat(images, len(outcomes), axis=0), jnp.asarray(operations), strengths)
    drawn = jax.jit(functools.partial(randaugment.randaugment, operations=1, magnitude=20))(
        KEY, jnp.repeat(images, 2800, axis=0)
    )
    views = np.random.default_rng(1).standard_normal((18 * 18 * 3, 3))  # enough to tell them apart
    drawn, possible = (np.asarray(pictures).reshape(len(pictures), -1) @ views for pictures in (drawn, possible))
    distances = np.abs(drawn[:, None] - possible).max(axis=2)
    assert (distances.min(axis=1) < 1e-3).all()
    counts = np.bincount(distances.argmin(axis=1), minlength=len(outcomes))
    assert stats.chisquare(counts, 2800 * probabilities).pvalue > 1e-3


def test_a_magnitude_beyond_the_scale_is_refused():
    with pytest.raises(UserError, match=r"randaugment_magnitude=31 .* from 0 to 30"):
        randaugment.randaugment(KEY, pictures(), 2, 31)


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
    drawn = np.asarray(
        jax.jit(erasing.cutout, static_argnums=2)(KEY, np.ones((1000, height, width, 2), np.float32), size)
    )
    assert {image.tobytes() for image in drawn} == squares


# --- random erasing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 40)])
def test_rectangles_are_distributed_as_torchvision_draws_them(height, width):
    import_torchvision()
    import torch
    from torchvision.transforms import RandomErasing

    count = 3000
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = [
        RandomErasing.get_params(image, list(erasing.ERASED_SHARES), list(erasing.ERASED_RATIOS), [0])
        for _ in range(count)
    ]
    theirs = np.array([box[:4] for box in theirs if box[2:4] != (height, width)])
    erase = jax.jit(functools.partial(erasing.random_erasing, probability=1.0))
    erased = np.asarray(erase(KEY, jnp.ones((count, height, width, 1))))[..., 0] == 0
    erased = erased[erased.any(axis=(1, 2))]
    rows, columns = erased.any(axis=2), erased.any(axis=1)
    np.testing.assert_array_equal(erased, rows[:, :, None] & columns[:, None, :])
    ours = np.stack([rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1)
    assert stats.ttest_ind(erased.mean(axis=(1, 2)), theirs[:, 2] * theirs[:, 3] / (height * width)).pvalue > 1e-3
    assert len(ours) == pytest.approx(len(theirs), abs=0.01 * count)
    for samples in zip(ours.T, theirs.T, strict=True):
        assert stats.ks_2samp(*samples, method="asymp").pvalue > 1e-3


def test_random_erasing_spares_the_other_images():
    images = pictures(batch=1000, height=8, width=8) / 2 + 0.5
    changed = np.asarray(jax.jit(erasing.random_erasing, static_argnums=2)(KEY, images, 0.3))
    untouched = (changed == images).all(axis=(1, 2, 3))
    assert stats.binomtest(int((~untouched).sum()), 1000, 0.3).pvalue > 1e-3
    np.testing.assert_array_equal(changed[changed != 0], np.asarray(images)[changed != 0])


# --- mixtures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixtures_equal_torchvision(name):
    import_torchvision()
    import torch
    from torchvision.transforms import v2

    torch.manual_seed(1)
    images, labels = pictures(batch=5), np.array([0, 2, 1, 1, 3])
    batch = torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())
    theirs, their_targets = getattr(v2, name)(alpha=1.0, num_classes=4)(batch, torch.from_numpy(labels))
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    if name == "MixUp":
        shares = np.full((17, 24), their_targets[0, 0].item())
    else:
        shares = (theirs[0] == images[0]).all(axis=-1).astype(np.float32)
    assert 0 < shares.mean() < 1
    targets = jax.nn.one_hot(labels, 4)
    ours, our_targets = mixing.mix_pairs(images, targets, jnp.asarray(shares), jnp.asarray(shares.mean()))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(our_targets, their_targets, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 5.0])
def test_shares_of_mixup_have_the_beta_distribution(alpha):
    images = jnp.zeros((2, 1, 1, 1))
    pixels, shares = jax.jit(jax.vmap(lambda key: mixing.draw_mixup(key, images, alpha)))(jax.random.split(KEY, 4000))
    np.testing.assert_array_equal(pixels[:, 0, 0], shares)
    assert shares.mean() == pytest.approx(0.5, abs=4 * stats.beta(alpha, alpha).std() / math.sqrt(4000))
    # In bins, since float32 has none of the numbers that are all but 1, which a small alpha makes frequent.
    edges = np.array([0, 1e-4, 1e-2, *np.arange(1, 10) / 10, 1 - 1e-2, 1 - 1e-4, 1])
    expected = 4000 * np.diff(stats.beta(alpha, alpha).cdf(edges))
    keep = expected > 5
    counts = np.histogram(shares, edges)[0]
    assert stats.chisquare(counts[keep], expected[keep] * counts[keep].sum() / expected[keep].sum()).pvalue > 1e-3


def test_boxes_of_cutmix_are_distributed_as_torchvision_draws_them():
    import_torchvision()
    import torch
    from torchvision.transforms import v2

    torch.manual_seed(0)
    cutmix, labels = v2.CutMix(alpha=1.0, num_classes=2), torch.tensor([0, 1])
    batch = torch.stack([torch.ones(1, 12, 20), torch.zeros(1, 12, 20)])
    theirs = np.stack([cutmix(batch, labels)[0][0, 0].numpy() for _ in range(1000)])
    draw = jax.jit(jax.vmap(lambda key: mixing.draw_cutmix(key, jnp.zeros((2, 12, 20, 1)), 1.0)))
    ours, wholes = (np.asarray(drawn) for drawn in draw(jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(wholes, ours.mean(axis=(1, 2)), atol=1e-6)
    assert set(np.unique(ours)) == {0, 1}

    def extents(shares):
        return (shares == 0).any(axis=2).sum(axis=1), (shares == 0).any(axis=1).sum(axis=1), shares.mean(axis=(1, 2))

    for samples in zip(extents(ours), extents(theirs), strict=True):
        assert stats.ks_2samp(*samples, method="asymp").pvalue > 1e-3
    # How often each pixel is in the box, as a share of all draws.
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=4 * math.sqrt(0.25 / 1000))


@pytest.mark.parametrize(("alphas", "share"), [({"mixup": 0.5}, 1), ({"cutmix": 1.0}, 0), (None, 0.5)])
def test_one_of_the_two_mixes_a_batch(alphas, share):
    images, labels = pictures(batch=6, height=8, width=8), jnp.array([0, 1, 2, 2, 1, 0])
    mix = functools.partial(aug.mix, num_classes=3, **(alphas or {"mixup": 0.5, "cutmix": 1.0}))
    mixed, targets = jax.jit(jax.vmap(mix, (0, None, None)))(jax.random.split(KEY, 200), images, labels)
    assert mixed.shape == (200, *images.shape)
    assert targets.shape == (200, 6, 3)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(targets[:, 3], np.tile([0, 0, 1], (200, 1)), atol=1e-6)  # the one before has its class
    # Of a blend no pixel equals one of the two, but where a share is all but 0 or 1.
    own = np.isclose(mixed[:, 1], images[1], atol=1e-3) | np.isclose(mixed[:, 1], images[0], atol=1e-3)
    blended = ~own.all(axis=(1, 2, 3)) | ((targets[:, 1].max(axis=-1) > 0.99) & (share == 1))
    assert stats.binomtest(int(blended.sum()), 200, share).pvalue > 1e-3


def test_nothing_is_mixed_where_both_are_off():
    images, labels = pictures(), jnp.array([1, 0, 2, 1])
    mixed, targets = aug.mix(KEY, images, labels, num_classes=3)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, np.eye(3)[labels])


def test_mixing_commutes_with_normalization():
    images, labels = pictures(), jnp.array([1, 0, 2, 1])
    mix = jax.jit(functools.partial(aug.mix, num_classes=3, mixup=1.0))
    normalize = functools.partial(aug.normalize, normalization="mean_std", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    np.testing.assert_allclose(
        mix(KEY, normalize(images), labels)[0], normalize(mix(KEY, images, labels)[0]), atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_mixtures_keep_the_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        mix = jax.jit(functools.partial(aug.mix, num_classes=3, mixup=1.0, cutmix=1.0))
        mixed, targets = mix(KEY, pictures(dtype=dtype), jnp.array([1, 0, 2, 1]))
        assert mixed.dtype == dtype
        assert targets.dtype == jnp.promote_types(dtype, "float32")


# --- devices ----------------------------------------------------------------------------------------------------


def test_eight_devices_equal_one_and_exchange_nothing():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    images = pictures(BATCH)
    step = augmenting(**STRENGTHS)
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


def test_mixtures_on_eight_devices_equal_those_on_one():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    images, labels = pictures(BATCH), jnp.arange(BATCH) % 3
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mix = jax.jit(functools.partial(aug.mix, num_classes=3, mixup=1.0, cutmix=1.0))
    sharded = jax.device_put((images, labels), NamedSharding(mesh, P("data")))
    for seed in (0, 1, 2, 3):  # both kinds are among them
        key = jax.random.key(seed)
        alone = mix(key, images, labels)
        together = mix(jax.device_put(key, NamedSharding(mesh, P())), *sharded)
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-6)


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
    centered = raw - 255 * mean  # from -127 to 127, about
    np.testing.assert_allclose(normalize(normalization="mean_255"), centered, atol=1e-4)
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
