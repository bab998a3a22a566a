"""From pictures to inputs, against torchvision's and timm's own, and to logits."""

import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import peer_variables, randomize
from peers import import_timm, import_torchvision
from PIL import Image

from inception_jax.errors import UserError
from inception_jax.models import create_model
from inception_jax.weights import PRETRAINED, Preprocessing, imagenet_classes
from inception_jax.weights.pretrained import Pretrained

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def a_picture(height, width, seed=0):
    """Smooth noise, whose resized pixels depend on the filter, and on where the crop is."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs():
    """Four real ones, two of one size: larger and smaller than what the networks see, wide and tall."""
    folder = Path(os.environ.get("INCEPTION_JAX_TEST_DATA") or "missing", "imagenet-originals")
    files = sorted(folder.glob("*.JPEG"))
    if not files:
        pytest.skip("INCEPTION_JAX_TEST_DATA names no folder with photographs")
    return files[:2] + files[6:8]


SIZES = [(256, 256), (300, 500), (501, 333), (100, 80), (343, 342), (224, 224), (1001, 250)]


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name.startswith("torchvision")])
def test_published_preprocessing_is_torchvisions(name):
    """In particular that transform_input is the same as another normalisation."""
    torchvision = import_torchvision()
    weights = PRETRAINED[name]
    version = "IMAGENET1K_V2" if name.endswith(".v2") else "IMAGENET1K_V1"
    enum = torchvision.models.get_model_weights(weights.model)[version]
    assert weights.url == enum.url
    prepare = enum.transforms()
    transforms_input = weights.model in ("googlenet", "inception_v3")
    with_transform = torchvision.models.GoogLeNet(transform_input=transforms_input, init_weights=False)
    for height, width in SIZES if transforms_input else SIZES[:2]:
        picture = a_picture(height, width)
        expected = with_transform._transform_input(prepare(picture)[None])[0].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(weights.preprocessing(picture), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name.startswith("timm")])
def test_published_preprocessing_is_timms(name):
    timm = import_timm()
    weights = PRETRAINED[name]
    tag = name.partition(".")[2] or {"inception_v3": "tv_in1k"}.get(weights.model, "tf_in1k")
    config = timm.models.get_pretrained_cfg(f"{weights.model}.{tag}")
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    prepare = timm.data.create_transform(**data)
    for height, width in SIZES:
        picture = a_picture(height, width)
        expected = prepare(picture).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(weights.preprocessing(picture), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("resize", [224, 232, 256])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_torchvisions_for_every_size(resize, interpolation):
    torchvision = import_torchvision()
    transforms = torchvision.transforms
    prepare = torchvision.transforms._presets.ImageClassification(
        crop_size=224, resize_size=resize, interpolation=transforms.InterpolationMode(interpolation)
    )
    preprocessing = Preprocessing(resize, 224, *IMAGENET, interpolation)
    for height, width in SIZES:
        picture = a_picture(height, width)
        expected = prepare(picture).numpy().transpose(1, 2, 0)
        inputs = preprocessing(picture)
        np.testing.assert_allclose(inputs, expected, rtol=0, atol=1e-6)
        assert inputs.dtype == np.float32


def test_every_kind_of_picture_is_taken(tmp_path):
    preprocessing = Preprocessing(40, 32, *IMAGENET)
    picture = a_picture(60, 50)
    expected = preprocessing(picture)
    picture.save(tmp_path / "picture.png")
    for same in (np.array(picture), tmp_path / "picture.png", str(tmp_path / "picture.png")):
        np.testing.assert_array_equal(preprocessing(same), expected)
    gray = picture.convert("L")
    for same in (gray, np.array(gray), np.array(gray)[:, :, None], gray.convert("RGBA")):
        np.testing.assert_array_equal(preprocessing(same), preprocessing(gray.convert("RGB")))
    pixels = np.array(picture)
    for batch in ([picture, pixels], np.stack([pixels, pixels]), (picture, picture)):
        np.testing.assert_array_equal(preprocessing.batch(batch), np.stack([expected, expected]))
    for single in (picture, pixels, tmp_path / "picture.png"):
        np.testing.assert_array_equal(preprocessing.batch(single), expected[None])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"a picture must be uint8 .*, not float32 \(8, 8, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"not uint8 \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"not uint8 \(8,\)"),
        ("missing.jpg", "cannot read the picture missing.jpg: No such file"),
        (__file__, "cannot read the picture .*: it is not a picture of a known format"),
    ],
)
def test_what_is_no_picture_is_named(picture, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(8, 8, *IMAGENET)(picture)


@pytest.mark.parametrize("error", [SyntaxError("broken PNG file"), Image.DecompressionBombError("too large")])
def test_whatever_pillow_says_of_a_broken_picture_is_said(error, tmp_path, monkeypatch):
    a_picture(8, 8).convert("L").save(tmp_path / "broken.png")  # gray becomes color

    def convert(*args):
        raise error

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(UserError, match=rf"cannot read the picture .*broken\.png: {error}"):
        Preprocessing(8, 8, *IMAGENET)(tmp_path / "broken.png")


def test_class_names_are_the_peers():
    torchvision = import_torchvision()
    assert list(imagenet_classes()) == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]


# From pictures to logits: a network with random weights, but with all else as the published ones have it.


def assert_logits_are_the_peers(name, make, prepare, pictures, **options):
    import torch

    with torch.device("meta"):
        peer = make()
    randomize(peer)
    weights = PRETRAINED[name]
    model = create_model(weights.model, num_classes=1000, **options)
    network = Pretrained(model, peer_variables(model, peer, weights.format), weights.preprocessing, imagenet_classes())
    images = [Image.open(path).convert("RGB") for path in pictures]
    with torch.no_grad():
        expected = peer.eval()(torch.stack([prepare(image) for image in images])).numpy()
    logits = network.logits(pictures)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(network.predict(pictures), jax.nn.softmax(logits), atol=1e-6)


def test_logits_of_photographs_are_torchvisions(photographs):
    """GoogLeNet's: with transform_input, an epsilon of 1e-3 and 3x3 kernels."""
    models = import_torchvision().models
    make = partial(models.googlenet, transform_input=True, aux_logits=False, init_weights=False)
    prepare = models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    assert_logits_are_the_peers("torchvision:googlenet", make, prepare, photographs, kernel_5x5=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "inception_v3", "resnet50"])
def test_logits_of_photographs_are_torchvisions_for_other_networks(photographs, name):
    models = import_torchvision().models
    options = {"transform_input": True, "aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    prepare = models.get_model_weights(name).IMAGENET1K_V1.transforms()
    assert_logits_are_the_peers(f"torchvision:{name}", partial(models.get_model, name, **options), prepare, photographs)


@pytest.mark.slow
def test_logits_of_photographs_are_timms(photographs):
    timm = import_timm()
    config = timm.models.get_pretrained_cfg("inception_v4").to_dict()
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    assert_logits_are_the_peers("timm:inception_v4", partial(timm.create_model, "inception_v4"), prepare, photographs)
