"""Exported networks, read back by this package, by JAX alone and by onnxruntime."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import SHORTENED, random_variables
from PIL import Image

from inception_jax import experiment, models
from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.data.images import Format
from inception_jax.errors import UserError
from inception_jax.runs import run
from inception_jax.runs.run import load_run
from inception_jax.trained.export import export_run, load_exported
from inception_jax.trained.export.onnx_graph import to_onnx

FORMATS = ("stablehlo", "onnx")
TOLERANCES = {"stablehlo": 1e-5, "onnx": 1e-4}
SMALLEST = {"alexnet": 64, "inception_resnet_v2": 75, "inception_v4": 75, "inception_v3": 75}
# One or two of each class, by what their layers are (Inception v2 has v3's); by default two that take seconds.
QUICK = ("simple_cnn", "tiny_vgg_b")
OTHERS = (
    "alexnet", "bn_inception", "googlenet", "inception_resnet_v2", "inception_v3", "inception_v4", "resnet18",
    "resnet50", "small_inception", "vgg11", "vgg11_bn",
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)


def close(found, expected, tolerance):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module")
def original(trained):
    return load_run(trained)


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    """A path for every format and kind of input."""
    folder, paths = tmp_path_factory.mktemp("exported"), {}
    for format in FORMATS:
        for kind in ("float32", "uint8"):
            paths[format, kind] = folder / f"{kind}.{format}"
            export_run(original, paths[format, kind], format, input=kind)
    return paths


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_file_computes_the_runs_logits_for_any_batch(exported, original, format, kind):
    found = load_exported(exported[format, kind])
    assert found.class_names == original.class_names
    assert found.form == original.form
    for number in (1, 7):
        close(found.logits(IMAGES[:number]), original.logits(IMAGES[:number]), TOLERANCES[format])


def test_jax_alone_reads_it_as_the_page_says(exported, original, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "use.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(import json\n\nimport jax\.export.*?)^```$", page, re.DOTALL | re.MULTILINE)
    code = code.replace("runs/my_pictures/googlenet.stablehlo", str(exported["stablehlo", "uint8"]))
    np.save(tmp_path / "images.npy", IMAGES)
    program = f"import sys\nimport numpy as np\nimages = np.load({str(tmp_path / 'images.npy')!r})\n{code}"
    program += f"\nnp.save({str(tmp_path / 'logits.npy')!r}, logits)\nassert 'inception_jax' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program], check=True)
    close(np.load(tmp_path / "logits.npy"), original.logits(IMAGES), 1e-5)


def test_what_has_to_be_known_stands_beside_it(exported, original):
    about = json.loads(exported["onnx", "float32"].with_name("float32.onnx.json").read_text())
    assert about["input"] == {
        "name": "images", "shape": ["batch", 8, 8, 1], "layout": "NHWC", "dtype": "float32",
    }  # fmt: skip
    assert about["class_names"] == list(original.class_names)
    assert about["normalization"]["mean"] == list(original.inputs.mean)
    assert (about["network"], about["step"]) == ("simple_cnn", original.step)


@pytest.mark.parametrize("format", FORMATS)
def test_predict_answers_from_the_file_as_from_the_run(exported, trained, tmp_path, capsys, format):
    """A hundred pictures of mixed size and mode."""
    random = np.random.default_rng(2)
    modes = ("L", "RGB", "RGBA", "P", "1", "CMYK", "LA", "I;16")
    for index in range(100):
        height, width = random.integers(3, 60, 2)
        mode = modes[index % len(modes)]
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / f"{index:03d}.{'tiff' if mode in ('CMYK', 'LA') else 'png'}")
    answers = []
    for source in (trained, exported[format, "uint8"]):
        assert main(["predict", str(source), str(tmp_path), "--json", "--top", "10"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(answers[0]) == 100
    for ours, theirs in zip(*answers, strict=True):
        assert ours["picture"] == theirs["picture"]
        expected = {one["name"]: one["probability"] for one in ours["classes"]}
        for one in theirs["classes"]:
            assert one["probability"] == pytest.approx(expected[one["name"]], abs=1e-4)
        assert ours["classes"][0]["name"] == theirs["classes"][0]["name"]


def random_run(name, size, *, shortened=(), **options):
    config = default_config()
    config.model.update(name=name, **options)
    model = experiment.build_model(config, 5).clone(**dict(shortened))
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    shapes = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), inputs)
    variables = {"batch_stats": {}, **random_variables(shapes)}
    inputs = experiment.Inputs(tuple("abcde"), (size, size, 3), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return run.Run(Path("nowhere"), config, model, variables, inputs, 0)


def test_the_kinds_of_networks_are_complete():
    classes = {type(models.create_model(name, num_classes=2)) for name in models.list_models()}
    classes -= {kind for kind in classes if classes & {*kind.__bases__}}  # with other defaults alone
    assert {type(models.create_model(name, num_classes=2)) for name in (*QUICK, *OTHERS)} == classes


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_kind_of_network_can_be_written_as_onnx(name, tmp_path):
    original = random_run(name, SMALLEST.get(name, 64), shortened=SHORTENED.get(name, ()))
    _, difference = export_run(original, tmp_path / "network.onnx", "onnx")
    assert difference < 1e-4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("normalization", ["per_image", "mean_255"])
def test_every_normalization_is_inside(tmp_path, format, normalization):
    original = random_run("simple_cnn", 8, stage_features=(4, 8))
    original.config.data.normalization = normalization
    exported, _ = export_run(original, tmp_path / f"network.{format}", format, input="uint8")
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images[1] = 7  # without deviation
    close(exported.logits(images), original.logits(images), TOLERANCES[format])


def test_padding_is_beside_the_file_and_absent_in_earlier_ones(tmp_path):
    original = random_run("simple_cnn", 8, stage_features=(4,))
    original.config.data.pad = 2
    path = tmp_path / "network.stablehlo"
    export_run(original, path, "stablehlo")
    assert load_exported(path).form == original.form == Format(8, pad=2)
    beside = path.with_name("network.stablehlo.json")
    about = json.loads(beside.read_text())
    del about["preprocessing"]["pad"]
    beside.write_text(json.dumps(about))
    assert load_exported(path).form == Format(8)


class Outside(nn.Module):
    """A network as docs/your_own.md writes one, without fields for data types."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(images))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_from_outside_can_be_written(tmp_path, format):
    model = Outside(5)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    variables = {"batch_stats": {}, **variables}
    original = dataclasses.replace(random_run("simple_cnn", 8), model=model, variables=variables)
    exported, _ = export_run(original, tmp_path / f"network.{format}", format)
    assert exported.about["network"] == "Outside"
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    inputs = original.transform.normalizer(np.float32)(images)
    close(exported.logits(images), model.apply(variables, inputs, train=False), TOLERANCES[format])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, beside: path.unlink(), "cannot read .*float32.stablehlo: No such file"),
        (lambda path, beside: beside.unlink(), "which belongs to float32.stablehlo: No such file"),
        (lambda path, beside: path.write_bytes(path.read_bytes()[:-1]), "is damaged, or"),
        (lambda path, beside: beside.write_text("{}"), "does not describe an exported network"),
        (lambda path, beside: beside.write_text("[" * 9), "does not describe an exported network"),
        (
            lambda path, beside: beside.write_text(beside.read_text().replace('"bilinear"', '"cubic"')),
            "does not describe an exported network|unknown resize 'cubic'",
        ),
    ],
)
def test_damaged_files_are_named(exported, tmp_path, damage, message):
    source = exported["stablehlo", "float32"]
    path, beside = tmp_path / source.name, tmp_path / f"{source.name}.json"
    path.write_bytes(source.read_bytes())
    beside.write_text(source.with_name(beside.name).read_text())
    damage(path, beside)
    with pytest.raises(UserError, match=message):
        load_exported(path)


def test_a_file_that_computes_something_else_is_removed(original, tmp_path, monkeypatch):
    monkeypatch.setattr("inception_jax.trained.export.write.TOLERANCES", {"stablehlo": -1.0})
    with pytest.raises(UserError, match="was removed: the relative difference of its logits is"):
        export_run(original, tmp_path / "a.stablehlo", "stablehlo")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_is_not_known_to_have_is_named():
    with pytest.raises(UserError, match="ONNX export does not support the operation sin"):
        to_onnx(lambda variables, images: jax.numpy.sin(images), {}, (4, 4, 3), "float32")


def branching(variables, images):
    """Two branches behind a convolution, and what can be done with their maps in any order of axes."""
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    numbers = ("NHWC", "HWIO", "NHWC")
    kernels, bias = variables["kernels"], variables["bias"]
    x = convolve(images, kernels[0], dimension_numbers=numbers)
    branches = [nn.relu(convolve(x, kernel, dimension_numbers=numbers) + bias) for kernel in kernels[1:]]
    pooled = nn.max_pool(branches[0], (3, 3), (2, 2), "SAME")
    other = jax.lax.slice_in_dim(jax.lax.slice_in_dim(branches[1], 0, None, 2, axis=1), 0, None, 2, axis=2)
    joined = jax.numpy.concatenate([pooled, other], axis=-1)
    joined = jax.numpy.pad(joined, ((0, 0), (1, 0), (0, 2), (0, 0)))
    first, second = jax.numpy.split(joined, 2, axis=-1)
    return (first**2 / (1 + second) - first).mean((1, 2))


def test_maps_are_transposed_where_they_come_in_alone():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    kernels = [random.standard_normal((3, 3, 3, 3), np.float32) for _ in range(3)]
    variables = {"kernels": kernels, "bias": random.standard_normal(3, np.float32)}
    content = to_onnx(branching, variables, (9, 7, 3), "float32")
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert (kinds.count("Transpose"), kinds.count("Relu"), kinds.count("Max")) == (1, 2, 0)
    images = random.standard_normal((2, 9, 7, 3), np.float32)
    (found,) = onnxruntime.InferenceSession(content).run(None, {"images": images})
    close(found, np.asarray(branching(variables, images)), 1e-5)


def test_maps_are_transposed_back_for_what_needs_their_order():
    onnxruntime = pytest.importorskip("onnxruntime")
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4), np.float32)

    def flattening(variables, images):
        x = jax.lax.conv_general_dilated(
            images, variables["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.numpy.concatenate(
            [x.reshape(x.shape[0], -1), x.sum((1, 3)), x.max((2, 3)), nn.relu(x).mean(3).sum(1)], 1
        )

    content = to_onnx(flattening, {"kernel": kernel}, (5, 7, 3), "float32")
    images = np.random.default_rng(1).standard_normal((2, 5, 7, 3), np.float32)
    (found,) = onnxruntime.InferenceSession(content).run(None, {"images": images})
    close(found, np.asarray(flattening({"kernel": kernel}, images)), 1e-5)


def test_the_command_says_what_is_in_the_file(trained, tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    assert main(["export", str(trained), "--format", "onnx", "--input", "uint8", "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: simple_cnn of step ")
    assert lines[2] == "  inputs: 8x8, gray, channels last, uint8 pixels from 0 to 255"
    assert lines[3].startswith("  read back: relative difference of the logits ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "stablehl"], "unknown format 'stablehl'. Did you mean 'stablehlo'?"),
        (["--format", "onnx", "--input", "int8"], "unknown input 'int8'"),
        (["--format", "timm", "--input", "uint8"], "--input needs --format=stablehlo or onnx, not timm"),
        (["--format", "onnx", "--platforms", "cpu"], "--platforms needs --format=stablehlo, not onnx"),
        (["--format", "stablehlo", "--platforms", "cpu,gpu"], "unknown platform 'gpu'"),
        (["--format", "stablehlo", "--output", "/nowhere/a.stablehlo"], "cannot write /nowhere/a.stablehlo"),
    ],
)
def test_mistakes_are_answered_in_one_line(trained, capsys, flags, message):
    assert main(["export", str(trained), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
