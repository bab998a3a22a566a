"""What a trained network's methods take, and what they refuse: whatever training never had."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from inception_jax import activations, create_model, default_config, grad_cam
from inception_jax.data.images import Format
from inception_jax.errors import UserError
from inception_jax.experiment import Inputs
from inception_jax.inspection import gradient_norms
from inception_jax.runs.run import Run
from inception_jax.trained.export import export_run, load_exported
from inception_jax.trained.predict import predict
from inception_jax.weights import Preprocessing
from inception_jax.weights.pretrained import Pretrained

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
REFUSED = {
    "from 0 to 1": IMAGES / 255,
    "another size": IMAGES.repeat(2, 1).repeat(2, 2),
    "colours": IMAGES.repeat(3, 3),
    "one image": IMAGES[0],
    "a file": "picture.png",
    "a Pillow image": Image.fromarray(IMAGES[0, ..., 0]),
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


@pytest.mark.parametrize("kind", REFUSED)
def test_what_training_never_had_is_refused(run, exported, kind):
    images = REFUSED[kind]
    # A run's network is there to be tried on other sizes; an exported one has its size inside.
    for method in (*(() if kind == "another size" else (run.predict, run.logits, run.normalize)), exported.logits):
        with pytest.raises(UserError, match=r"images must be an array uint8 \(batch, 8, 8, 1\)") as error:
            method(images)
        assert len(str(error.value).splitlines()) == 1


def test_what_training_had_is_taken(run, exported):
    expected = run.logits(IMAGES)
    for same in (IMAGES[..., 0], list(IMAGES), jax.numpy.asarray(IMAGES)):
        np.testing.assert_array_equal(run.logits(same), expected)
        np.testing.assert_allclose(exported.logits(same), expected, rtol=1e-4, atol=1e-5)


def test_another_size_is_taken(run):
    assert run.logits(REFUSED["another size"]).shape == (3, 3)
    with pytest.raises(UserError, match=r"of one image, give images\[None\]"):
        run.logits(REFUSED["another size"][0])


def test_inspection_takes_the_networks_inputs_alone(run):
    inputs = run.normalize(IMAGES)
    assert grad_cam(run.model, run.variables, inputs).shape == (3, 8, 8)
    labels = np.zeros(3, int)
    looks = (grad_cam, activations, lambda *given: gradient_norms(*given, labels))
    for look in looks:
        for wrong in (IMAGES, inputs[0], "picture.png"):
            with pytest.raises(UserError, match=r"run.normalize\(images\) makes them of uint8 images"):
                look(run.model, run.variables, wrong)
        with pytest.raises(UserError, match="images of 8x8x3 are not for these variables"):
            look(run.model, run.variables, np.asarray(inputs).repeat(3, 3))


def test_files_bytes_and_pillow_images_are_predicted_alike(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as image:
        path, content, given = predict(run, [tmp_path / "phone.png", (tmp_path / "phone.png").read_bytes(), image])
    assert path.error is None
    assert path.probabilities == content.probabilities == given.probabilities
    assert (content.name, given.name) == ("-", "-")


def test_pictures_are_padded_as_in_training(run):
    config = run.config.copy_and_resolve_references()
    config.data.pad = 2
    padding, small = dataclasses.replace(run, config=config), IMAGES[:, :4, :4]
    expected = run.predict(np.pad(small, ((0, 0), (2, 2), (2, 2), (0, 0))))
    for picture, probabilities in zip(small, expected, strict=True):
        (found,) = predict(padding, [Image.fromarray(picture[..., 0])])
        np.testing.assert_allclose(found.probabilities, np.sort(probabilities)[::-1], rtol=1e-5)


def test_showing_one_does_not_show_its_weights(run, exported):
    assert repr(run) == "Run('runs/small': simple_cnn, step 7, images of 8x8x1, 3 classes)"
    assert repr(exported).endswith("small.stablehlo': simple_cnn, 3 classes)")
    names = tuple(map(str, range(1000)))
    pretrained = Pretrained(run.model, run.variables, Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3), names)
    assert len(repr(pretrained)) < 300
    assert Format(8, 1) == run.form
