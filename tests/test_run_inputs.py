"""What a trained network's methods take, and what they refuse: whatever training never had."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from inception_jax import activations, create_model, default_config, grad_cam
from inception_jax.data.images import Format, decode
from inception_jax.errors import UserError
from inception_jax.experiment import Inputs
from inception_jax.inference.predictor import check_batch
from inception_jax.inspection import gradient_norms
from inception_jax.runs.run import Run
from inception_jax.trained.export import export_run, load_exported
from inception_jax.weights import Preprocessing
from inception_jax.weights.pretrained import Pretrained

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
REFUSED = {
    "from 0 to 1": IMAGES / 255,
    "another size": IMAGES.repeat(2, 1).repeat(2, 2),
    "colours": IMAGES.repeat(3, 3),
    "one image": IMAGES[0],
    "signed": IMAGES.astype(np.int64),
}


@pytest.fixture(scope="module")
def run():
    """Not trained, which makes no difference here."""
    config = default_config()
    config.model.name, config.model.stage_features = "simple_cnn", (4,)
    model = create_model("simple_cnn", num_classes=3, stage_features=(4,))
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, 8, 8, 1), np.float32), train=False))(jax.random.key(0))
    variables = {"batch_stats": {}} | dict(variables)
    return Run(Path("runs/small"), config, model, variables, Inputs(("a", "b", "c"), (8, 8, 1), (0.5,), (0.2,)), 7)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "small.stablehlo"
    export_run(run, path, "stablehlo", input="uint8", platforms=("cpu",))
    return load_exported(path)


@pytest.fixture(scope="module")
def pretrained():
    """For pictures of 8x8 pixels in color, not trained either."""
    model = create_model("simple_cnn", num_classes=3, stage_features=(4,))
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, 8, 8, 3), np.float32), train=False))(jax.random.key(0))
    preprocessing = Preprocessing(12, 8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Pretrained(model, {"batch_stats": {}} | dict(variables), preprocessing, ("a", "b", "c"))


@pytest.fixture
def photo(tmp_path):
    """A picture in color, of another size than any network's."""
    pixels = np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_training_never_had_is_refused(run, exported, kind):
    images = REFUSED[kind]
    # A run's network is there to be tried on other sizes; an exported one has its size inside.
    for method in (*(() if kind == "another size" else (run.predict, run.logits, run.normalize)), exported.logits):
        with pytest.raises(UserError, match=r"images must be a uint8 array \(batch, 8, 8, 1\)") as error:
            method(images)
        assert len(str(error.value).splitlines()) == 1


def test_what_training_had_is_taken(run, exported):
    expected = run.logits(IMAGES)
    for same in (IMAGES[..., 0], list(IMAGES), jax.numpy.asarray(IMAGES)):
        np.testing.assert_array_equal(run.logits(same), expected)
        np.testing.assert_allclose(exported.logits(same), expected, rtol=1e-4, atol=1e-5)


NETWORKS = ("run", "exported", "pretrained")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_trained_network_takes_the_same_pictures(name, request, photo):
    network = request.getfixturevalue(name)
    stored = network.images(photo)
    np.testing.assert_array_equal(stored, decode(photo.read_bytes(), network.form)[None])
    assert stored.shape == (1, *network.transform.image_shape)
    logits, inputs = network.logits(photo), network.normalize(photo)
    assert (logits.shape, logits.dtype, inputs.dtype) == ((1, 3), np.float32, np.float32)
    with Image.open(photo) as image:
        for same in (str(photo), photo.read_bytes(), image, [photo], (image,)):
            np.testing.assert_array_equal(network.logits(same), logits)
            np.testing.assert_array_equal(network.normalize(same), inputs)
        assert network.predict([photo, image, photo]).shape == (3, 3)
    np.testing.assert_allclose(network.predict(photo), jax.nn.softmax(logits), rtol=1e-6)
    (found,) = network.classify([photo], top=3)
    order = np.argsort(-logits[0])
    assert found.classes == tuple(network.class_names[label] for label in order)
    np.testing.assert_allclose(found.probabilities, network.predict(photo)[0, order], rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_no_picture_is_named_by_every_trained_network(name, request, tmp_path):
    network = request.getfixturevalue(name)
    (tmp_path / "text.png").write_text("none")
    for method in (network.images, network.normalize, network.logits, network.predict):
        with pytest.raises(UserError, match=r"cannot read the picture gone\.png: No such file"):
            method("gone.png")
        with pytest.raises(UserError, match=r"text\.png: it is not a picture of a known format"):
            method([tmp_path / "text.png"])
    assert [one.error for one in network.classify([b"none"])] == ["it is not a picture of a known format"]


def test_published_weights_see_what_their_preprocessing_makes(pretrained, photo):
    pixels = np.asarray(Image.open(photo))
    inputs = pretrained.preprocessing.batch(photo)
    np.testing.assert_array_equal(pretrained.normalize(photo), inputs)
    for same in (pixels, pixels[None], [pixels], [photo, pixels][1:]):  # arrays are pictures here
        np.testing.assert_array_equal(pretrained.normalize(same), inputs)
    expected = pretrained.model.apply(pretrained.variables, inputs, train=False).logits
    np.testing.assert_allclose(pretrained.logits(photo), expected, rtol=1e-4, atol=1e-5)
    assert pretrained.logits([]).shape == (0, 3)
    with pytest.raises(UserError, match="crop=9 is not allowed: it must be from 1 to resize=8"):
        Preprocessing(8, 9, (0.0,) * 3, (1.0,) * 3)


def test_stored_images_are_not_cropped_again(run, photo):
    config = default_config()
    config.model.name, config.data.fit, config.data.crop_share = "simple_cnn", "crop", 0.5
    cropping = dataclasses.replace(run, config=config)
    expected = run.logits(IMAGES)
    np.testing.assert_array_equal(cropping.logits(IMAGES), expected)
    mixed = cropping.images([photo, IMAGES[0], IMAGES[1, ..., 0]])
    np.testing.assert_array_equal(mixed[1:], IMAGES[:2])
    np.testing.assert_array_equal(mixed[0], decode(photo.read_bytes(), Format(8, 1, "bilinear", "crop", 0.5)))
    found = [one.probabilities for one in cropping.classify(IMAGES, top=1)]
    np.testing.assert_allclose(found, run.predict(IMAGES).max(axis=1, keepdims=True), rtol=1e-5)


def test_a_network_of_oblong_images_takes_arrays_alone(run, photo):
    oblong = dataclasses.replace(run, inputs=Inputs(run.class_names, (6, 9, 1), (0.5,), (0.2,)))
    assert oblong.images(np.zeros((2, 6, 9), np.uint8)).shape == (2, 6, 9, 1)
    for method in (oblong.images, oblong.logits, lambda photo: list(oblong.classify([photo]))):
        with pytest.raises(UserError, match="takes images of 6x9 pixels; pictures become squares alone"):
            method(photo)


def test_another_size_is_taken(run):
    assert run.logits(REFUSED["another size"]).shape == (3, 3)
    with pytest.raises(UserError, match=r"for one image, give images\[None\]"):
        run.logits(REFUSED["another size"][0])


def test_inspection_takes_the_networks_inputs_alone(run):
    inputs = run.normalize(IMAGES)
    assert grad_cam(run.model, run.variables, inputs).shape == (3, 8, 8)
    labels = np.zeros(3, int)
    looks = (grad_cam, activations, lambda *given: gradient_norms(*given, labels))
    for look in looks:
        for wrong in (IMAGES, inputs[0], "picture.png"):
            with pytest.raises(UserError, match=r"run.normalize\(images\) converts uint8 images"):
                look(run.model, run.variables, wrong)
        with pytest.raises(UserError, match="images of 8x8x3 do not fit these variables"):
            look(run.model, run.variables, np.asarray(inputs).repeat(3, 3))


def test_files_bytes_and_pillow_images_are_predicted_alike(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as image:
        path, content, given = run.classify([tmp_path / "phone.png", (tmp_path / "phone.png").read_bytes(), image])
    assert path.error is None
    assert path.probabilities == content.probabilities == given.probabilities
    assert (content.name, given.name) == ("-", "-")


def test_pictures_are_padded_as_in_training(run):
    config = run.config.copy_and_resolve_references()
    config.data.pad = 2
    padding, small = dataclasses.replace(run, config=config), IMAGES[:, :4, :4]
    expected = run.predict(np.pad(small, ((0, 0), (2, 2), (2, 2), (0, 0))))
    for picture, probabilities in zip(small, expected, strict=True):
        (found,) = padding.classify([Image.fromarray(picture[..., 0])])
        np.testing.assert_allclose(found.probabilities, np.sort(probabilities)[::-1], rtol=1e-5)


def test_showing_one_does_not_show_its_weights(run, exported):
    assert repr(run) == "Run('runs/small': simple_cnn, step 7, images of 8x8x1, 3 classes)"
    assert repr(exported).endswith("small.stablehlo': simple_cnn, 3 classes)")
    names = tuple(map(str, range(1000)))
    pretrained = Pretrained(run.model, run.variables, Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3), names)
    assert len(repr(pretrained)) < 300
    assert Format(8, 1) == run.form


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 4, 5, 3)), r"got float64 \(2, 4, 5, 3\); convert them, e.g. \(255 \* images\)"),
        (np.zeros((2, 4, 5, 3), bool), "got bool"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"channels must be last: images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((4, 5, 3), np.uint8), r"for one image, give images\[None\]"),
        (np.zeros((2, 8, 10, 3), np.uint8), "convert_arrays"),
        (np.zeros((2, 4, 5, 1), np.uint8), "convert_arrays"),
        (np.zeros((2, 4, 5, 4), np.uint8), r"got uint8 \(2, 4, 5, 4\)"),
        (np.zeros((2, 4, 5), np.uint8), r"got uint8 \(2, 4, 5\)"),
        ((Path("picture.png") for _ in range(2)), "got object .*; give files and Pillow images as a list"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)], "got several shapes"),
        (3, "got int64"),
    ],
)
def test_batches_that_training_never_had_are_refused(given, message):
    with pytest.raises(UserError, match=r"images must be a uint8 array \(batch, 4, 5, 3\).*" + message) as error:
        check_batch(given, (4, 5, 3))
    assert "\n" not in str(error.value)


def test_batches_as_training_had_them_are_taken():
    batch = np.zeros((2, 4, 5, 1), np.uint8)
    for given in (batch, list(batch), batch[..., 0], batch[:0]):
        assert check_batch(given, (4, 5, 1)).shape == (len(given), 4, 5, 1)
