"""Other engines behind a network's logits: they give JAX's, or are not used."""

import dataclasses
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import module_shapes, random_variables
from PIL import Image

from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.experiment import Inputs
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.layers import ConvUnit, Outputs
from inception_jax.runs import run
from inception_jax.trained import engines
from inception_jax.trained.export import export_run
from inception_jax.trained.predict import load_classifier

pytest.importorskip("onnx", reason="onnx is in the extras 'onnxruntime' and 'openvino'")

FLOAT32_ERROR = 1e-5  # of the largest logit


def installed(name):
    """An engine's name, for `parametrize`; its test is skipped where it is not installed."""
    there = engines.importlib.util.find_spec(name) is not None
    return pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"{name} is in the extra {name!r}"))


ENGINES = [installed(name) for name in engines.ENGINES]
OPENVINO = installed("openvino")


class SmallGoogLeNet(nn.Module):
    """A stem, two Inception modules and an auxiliary head, with the fields of the package's networks."""

    num_classes: int
    norm: str = "batch"
    norm_epsilon: float = 1e-3
    dtype: type = np.float32
    param_dtype: type = np.float32

    @nn.compact
    def __call__(self, images, *, train):
        conv = partial(ConvUnit, norm=self.norm, dtype=self.dtype)
        x = conv(8, (3, 3), name="conv1")(images, train)
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        table = Inception(8, 4, 8, 4, 8, 8)
        x = InceptionModule(table, conv=conv, name="inception_3a")(x, train)
        aux = nn.Dense(self.num_classes, name="aux")(x.mean((1, 2)))
        x = InceptionModule(table, conv=conv, name="inception_3b")(x, train)
        return Outputs(nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)).astype(np.float32)), {"aux": aux})


def run_of(model, size=16, channels=3, **fields):
    """A run that was never trained, with weights from NumPy."""
    config = default_config()
    with config.ignore_type():
        for name, value in fields.items():
            config[name] = value
    _, shapes = module_shapes(model, (2, size, size, channels))
    variables = {"batch_stats": {}, **random_variables(shapes)}
    inputs = Inputs(tuple("abcdef"), (size, size, channels), (0.4,) * channels, (0.2,) * channels)
    return run.Run(Path("nowhere"), config, model, variables, inputs, 0)


def images_of(classifier, number, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (number, *classifier.inputs.image_shape), np.uint8)


def error_of(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def original():
    return run_of(SmallGoogLeNet(6))


@pytest.fixture(scope="module")
def gray():
    return run_of(SmallGoogLeNet(6), channels=1)


@pytest.fixture
def all_installed(monkeypatch):
    """Every engine is a stand-in that gives JAX's logits and counts its calls."""
    made, calls = {}, {}

    def stand_in(name, changed=lambda logits: logits):
        def make(graph, dtype):
            def call(images):
                calls[name] = calls.get(name, 0) + 1
                return changed(made["of"].logits(images))

            return call

        return make

    def install(classifier, **changes):
        made["of"] = classifier
        monkeypatch.setattr(
            engines, "ENGINES", {name: stand_in(name, *changes.get(name, ())) for name in engines.TYPES}
        )
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
        return calls

    return install


def fake_trial(monkeypatch, **rates):
    monkeypatch.setattr(engines, "trial", lambda given, images: {name: rates[name] for name in given})


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_jaxs_logits_for_any_number_of_images(original, engine):
    network = engines.use(original, engine, batch_size=4)
    for number in (0, 1, 3, 8):
        images = images_of(original, number)
        found = network.logits(images)
        assert (found.dtype, found.shape) == (np.float32, (number, 6))
        if number:
            expected = original.logits(images)
            assert error_of(found, expected) < FLOAT32_ERROR
            top = np.argsort(-expected, axis=1)[:, :5]
            np.testing.assert_array_equal(np.argsort(-found, axis=1)[:, :5], top)


@pytest.mark.parametrize("engine", ENGINES)
def test_gray_images_and_those_of_other_sizes(gray, engine):
    other = engines.use(gray, engine, batch_size=4)
    images = images_of(gray, 3)
    expected = gray.logits(images)
    assert error_of(other.logits(images), expected) < FLOAT32_ERROR
    assert error_of(other.logits(images[..., 0]), expected) < FLOAT32_ERROR  # the channel may be left out
    assert error_of(other.logits(images.transpose(0, 2, 1, 3)), gray.logits(images.transpose(0, 2, 1, 3))) < 1e-5
    np.testing.assert_array_equal(other.logits(images[:, :12, :9]), gray.logits(images[:, :12, :9]))
    with pytest.raises(UserError, match="images must be a uint8 array"):
        other.logits(images.astype(np.float32))


@pytest.mark.parametrize("engine", [OPENVINO])
def test_openvino_computes_in_bfloat16_where_the_processor_does(engine):
    original = run_of(SmallGoogLeNet(6, dtype=jax.numpy.bfloat16))
    try:
        other = engines.use(original, engine, batch_size=4)
    except UserError as error:
        assert "does not support bfloat16 on this processor" in str(error)  # noqa: PT017, both are right
        return
    images = images_of(original, 8)
    exact = run_of(SmallGoogLeNet(6)).logits(images)
    assert 1e-4 < error_of(other.logits(images), exact) < 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_may_share_an_engine(original, engine):
    other = engines.use(original, engine, batch_size=4)
    batches = [images_of(original, 1 + seed % 3, seed) for seed in range(24)]
    expected = list(map(other.logits, batches))
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(other.logits, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_computes_something_else_is_not_used(original, engine, monkeypatch, caplog):
    make = engines.ENGINES[engine]

    def tampered(graph, dtype):
        call = make(graph, dtype)
        return lambda images: call(images)[:, ::-1]

    monkeypatch.setattr(engines, "ENGINES", {engine: tampered})
    with pytest.raises(
        UserError,
        match=rf"engine={engine} is not used: .* but at most 0.0001 is allowed",
    ):
        engines.use(original, engine, batch_size=4)
    with caplog.at_level(logging.INFO):
        assert engines.use(original, "auto", batch_size=4).engine is None
    warning, line = caplog.messages
    assert f"engine={engine} is not used: the relative difference of its logits is" in warning
    assert line == "engine: jax"


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"jax": 100, "onnxruntime": 120, "openvino": 130}, "openvino"),
        ({"jax": 100, "onnxruntime": 90, "openvino": 102}, "jax"),  # not worth it
        ({"jax": 100, "onnxruntime": 160, "openvino": 150}, "onnxruntime"),
    ],
)
def test_auto_takes_what_is_faster_and_says_so(original, all_installed, monkeypatch, caplog, rates, chosen):
    calls = all_installed(original)
    fake_trial(monkeypatch, **rates)
    with caplog.at_level(logging.INFO):
        network = engines.use(original, "auto", batch_size=5)
    (line,) = caplog.messages
    slower = ", ".join(f"{name} {rate}" for name, rate in rates.items() if name != chosen)
    assert line == f"engine: {chosen}, {rates[chosen]} images/s ({slower})"
    before = dict(calls)
    network.logits(images_of(original, 2))
    assert {name: number - before[name] for name, number in calls.items()} == {
        name: int(name == chosen) for name in engines.TYPES
    }


def test_auto_leaves_out_what_fails(original, all_installed, monkeypatch, caplog):
    def broken(logits):
        raise RuntimeError("no memory\nand more")

    all_installed(original, onnxruntime=(broken,), openvino=(lambda logits: logits * np.nan,))
    with caplog.at_level(logging.INFO):
        assert engines.use(original, "auto", batch_size=4).engine is None
    assert "engine=onnxruntime cannot run this network: RuntimeError: no memory" in caplog.messages
    assert "the relative difference of its logits is nan" in caplog.text
    assert caplog.messages[-1] == "engine: jax"


def test_auto_tries_nothing_that_computes_in_another_type(all_installed, monkeypatch, caplog):
    original = run_of(SmallGoogLeNet(6, dtype=jax.numpy.bfloat16))
    all_installed(original)
    fake_trial(monkeypatch, jax=100, openvino=150)  # and nothing else
    with caplog.at_level(logging.INFO):
        engines.use(original, "auto", batch_size=4)
    assert caplog.messages == ["engine: openvino, 150 images/s (jax 100)"]


def test_auto_without_other_engines_is_jax_at_once(original, monkeypatch, caplog):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(run.Run, "logits", None)  # is not called
    with caplog.at_level(logging.INFO):
        assert engines.use(original, "auto", batch_size=4).engine is None
    assert caplog.messages == ["engine: jax; not installed: onnxruntime, openvino"]


def test_on_an_accelerator_jax_computes(original, all_installed, monkeypatch):
    all_installed(original)
    monkeypatch.setattr(engines.jax, "default_backend", lambda: "gpu")
    assert engines.use(original, "auto", batch_size=4).engine is None
    with pytest.raises(UserError, match="engine=openvino runs on CPUs only, but JAX uses the gpu here"):
        engines.use(original, "openvino", batch_size=4)


class Sorting(nn.Module):
    """A network of somebody's own, of what ONNX files are not known to have."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes)(jax.numpy.sort(images.mean((1, 2)), axis=1))


class OfOneSize(nn.Module):
    """One that needs to know how many images there are."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes)(images.mean((1, 2))) * np.ones((int(images.shape[0]), 1))


@pytest.mark.parametrize("network", [Sorting, OfOneSize])
def test_networks_that_onnx_cannot_hold_stay_with_jax(network, all_installed, caplog):
    original = run_of(network(6))
    all_installed(original)
    with pytest.raises(UserError, match="ONNX export "):
        engines.use(original, "openvino", batch_size=4)
    with caplog.at_level(logging.INFO):
        assert engines.use(original, "auto", batch_size=4).engine is None
    (line,) = caplog.messages
    assert line.startswith("engine: jax; ONNX export ")
    assert len(line.splitlines()) == 1


def test_mistakes_are_named(original, monkeypatch):
    with pytest.raises(UserError, match=r"unknown engine 'openvin'. Did you mean 'openvino'\?"):
        engines.use(original, "openvin", batch_size=4)
    with pytest.raises(UserError, match="batch_size=0 is not allowed"):
        engines.use(original, "auto", batch_size=0)
    narrow = run_of(SmallGoogLeNet(6, dtype=jax.numpy.bfloat16))
    with pytest.raises(UserError, match="engine=onnxruntime supports float32, but the network computes in bfloat16"):
        engines.use(narrow, "onnxruntime", batch_size=4)
    for name in engines.TYPES:
        monkeypatch.setitem(sys.modules, name, None)
        message = rf"needs the package {name}, which is not installed: pip install 'inception-jax\[{name}\]'"
        with pytest.raises(UserError, match=message):
            engines.use(original, name, batch_size=4)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra 'onnxruntime'")
    folder, original = tmp_path_factory.mktemp("exported"), load_classifier(trained)
    for name, kind in (("uint8.onnx", "uint8"), ("float32.onnx", "float32"), ("network.stablehlo", "uint8")):
        export_run(original, folder / name, name.partition(".")[2], input=kind)
    return folder


@pytest.mark.parametrize("engine", [OPENVINO])
@pytest.mark.parametrize("name", ["uint8.onnx", "float32.onnx"])
def test_an_exported_file_has_engines_too(exported, name, engine):
    original = load_classifier(exported / name)
    other = engines.use(original, engine, batch_size=4)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), np.uint8)
    assert error_of(other.logits(images), original.logits(images)) < FLOAT32_ERROR
    assert other.engine is not None
    for again in (original, other):
        own = engines.use(again, "onnxruntime", batch_size=4)
        assert (own.engine, own._call) == (None, original._call)


def test_a_file_of_another_format_is_refused(exported):
    stablehlo, onnx = (load_classifier(exported / name) for name in ("network.stablehlo", "uint8.onnx"))
    assert engines.use(stablehlo, "auto", batch_size=4).engine is None
    with pytest.raises(UserError, match=r"engine=openvino cannot run .*network.stablehlo: .* or a \.onnx file"):
        engines.use(stablehlo, "openvino", batch_size=4)
    with pytest.raises(UserError, match=r"engine=jax cannot run .*uint8.onnx: give the run's folder, or a \.stablehlo"):
        engines.use(onnx, "jax", batch_size=4)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("engine", ENGINES)
def test_predict_takes_an_engine(trained, picture, capsys, engine):
    assert main(["predict", str(trained), str(picture), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["predict", str(trained), str(picture), "--json", "--engine", engine]) == 0
    other = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in other["classes"]] == [one["name"] for one in plain["classes"]]
    for one, wanted in zip(other["classes"], plain["classes"], strict=True):
        assert one["probability"] == pytest.approx(wanted["probability"], abs=1e-5)


def test_the_commands_name_mistakes(trained, picture, capsys):
    for command in (["predict", str(trained), str(picture)], ["serve", str(trained), "--port=0"]):
        assert main([*command, "--engine", "tensorrt"]) == 2
        error = capsys.readouterr().err
        assert "unknown engine 'tensorrt'" in error
        assert len(error.splitlines()) == 1


def test_predict_tries_engines_for_many_large_pictures_alone(trained, picture, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(engines, "use", lambda network, engine, *, batch_size: asked.append(engine) or network)
    monkeypatch.setattr("inception_jax.commands.predict.WORTHWHILE", 3)
    command = ["predict", str(trained), "--json"]
    assert main([*command, *[str(picture)] * 3]) == 0
    assert asked == []  # they are of 8 pixels
    monkeypatch.setattr("inception_jax.commands.predict.WORTHWHILE_SIDE", 8)
    assert main([*command, *[str(picture)] * 2]) == 0
    assert asked == []
    assert main([*command, *[str(picture)] * 3]) == 0
    assert asked == ["auto"]
    capsys.readouterr()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_server_answers_with_an_engine_as_with_jax(trained, engine):
    pytest.importorskip("inception_jax.trained.serving", reason="its packages are in the extra 'serve'")
    from test_serving import ask, picture, serving_at

    original = run.load_run(trained)
    contents = [picture(seed) for seed in range(12)]
    expected = list(original.classify(contents, top=10))
    with serving_at(engines.use(original, engine, batch_size=4), max_batch=4) as address, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda content: ask(address, "/predict?top=10", content), contents))
        with_heat = ask(address, "/predict?top=1&grad_cam=1", contents[0])[2]
    for (status, _, answer), wanted in zip(answers, expected, strict=True):
        assert status == 200
        found = {one["name"]: one["probability"] for one in answer["classes"]}
        for name, probability in zip(wanted.classes, wanted.probabilities, strict=True):
            assert found[name] == pytest.approx(probability, abs=1e-5)
    assert with_heat["grad_cam"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("engine", [OPENVINO])
def test_any_number_of_images_in_any_order(original, engine):
    other = engines.use(original, engine, batch_size=2)
    images = images_of(original, engines.FIXED_SIZES + 5)
    expected = original.logits(images)
    for number in (*range(1, len(images)), 3, len(images) - 1, 1):
        assert error_of(other.logits(images[:number]), expected[:number]) < FLOAT32_ERROR


@pytest.mark.parametrize("engine", [OPENVINO])
def test_openvino_reports_nothing_to_its_makers(engine):
    del engine
    engines.import_openvino()
    ours = [name for name in sys.modules if name.partition(".")[0] == "openvino_telemetry"]
    assert ours == []


def test_a_run_is_the_same_with_another_engine(original, all_installed):
    all_installed(original)
    other = engines.use(original, "openvino", batch_size=4)
    names = [field.name for field in dataclasses.fields(run.Run) if field.name != "engine"]
    assert all(getattr(other, name) is getattr(original, name) for name in names)
    assert original.engine is None
    assert engines.use(other, "jax", batch_size=4).engine is None
