"""A run's folder may come from a stranger: nothing that it names outside the package is imported or called unasked."""

import hashlib
import json
import re
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from loading import load_data
from PIL import Image
from runs import four_classes, untrained_run

import inception_jax
from inception_jax import commands, models, registry
from inception_jax.config import default_config, field_names, get_field
from inception_jax.errors import UntrustedError, UserError
from inception_jax.experiment import build_model
from inception_jax.runs import run
from inception_jax.train import initial as initial_weights
from inception_jax.trained import evaluate
from inception_jax.trained.export import export_run
from inception_jax.trained.predict import load_classifier

CLASSES = ("Cat", "DOG", "sea_urchin", "teapot")
OWN = """
from flax import linen as nn

class Net(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes, name="fc")(nn.Conv(self.width, (3, 3), name="conv")(images).mean(axis=(1, 2)))
"""
NAMES = ("planted:Net", "canary:call", "canary:Net", "logging:basicConfig", "os:abort")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on pictures, the pictures and a picture: `untrained_run`."""
    place = tmp_path_factory.mktemp("runs")
    pictures = four_classes(place / "pictures")
    for name in ("first", "second_one"):
        untrained_run(place / name, pictures, CLASSES)
    Image.new("RGB", (16, 16)).save(place / "picture.png")
    return place


@pytest.fixture
def canary(tmp_path, monkeypatch, runs):
    """A module that notes every call. The current folder is a copy of a run, in it another that notes its import."""
    shutil.copytree(runs / "first", tmp_path / "run")
    noted = []
    module = types.ModuleType("canary")

    def call(*arguments, **options):
        noted.append(("call", arguments, options))
        return {}

    module.call = call
    module.Net = type("Net", (), {"__init__": call})
    module.noted = noted
    monkeypatch.setitem(sys.modules, "canary", module)
    for folder in (tmp_path, tmp_path / "run"):
        (folder / "planted.py").write_text("import canary\ncanary.noted.append('import')\n")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield module
    assert noted == []
    assert "planted" not in sys.modules


def change(folder, **fields):
    """Fields of the folder's config.json, by their full names with a double underscore for the dot."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        *sections, last = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[last] = value
    path.write_text(json.dumps(config))
    return folder


READERS = {
    "predict": ["predict", "RUN", "PICTURE"],
    "evaluate": ["evaluate", "RUN"],
    "evaluate_pair": ["evaluate", "OTHER", "--grayscale-run", "RUN"],
    "evaluate_ensemble": ["evaluate", "OTHER", "RUN", "--ensemble"],
    "report": ["report", "RUN"],
    "report_several": ["report", "OTHER", "RUN", "--output", "report.html"],
    "export": ["export", "RUN", "--format", "stablehlo"],
    "export_weights": ["export", "RUN", "--format", "torchvision"],
    "serve": ["serve", "RUN", "--port", "0"],
    "compare_first": ["compare", "RUN", "OTHER", "--images", "0"],
    "compare_second": ["compare", "OTHER", "RUN", "--images", "0"],
    "inspect": ["inspect", "RUN"],
    "inspect_several": ["inspect", "simple_cnn", "RUN", "--no-latency"],
    "train": ["train", "--config=finetune_folder", "--config.init_from=RUN", "--workdir=new"],
    "resume": ["train", "--config=finetune_folder", "--config.init_from=RUN", "--workdir=RUN"],
}


def answer(command, runs, folder, capsys, *more):
    places = {"RUN": str(folder), "OTHER": str(runs / "second_one"), "PICTURE": str(runs / "picture.png")}
    argv = [word.replace("RUN", places["RUN"]) if "=" in word else places.get(word, word) for word in command]
    code = commands.main([*argv, *more])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_no_command_imports_or_calls_the_network_that_a_folder_names(command, runs, canary, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    options = {"model__filename": str(victim), "model__filemode": "w", "model__force": True}
    for name in NAMES:
        change(tmp_path / "run", model__name=name, **options)
        code, said = answer(command, runs, tmp_path / "run", capsys)
        assert code == 2
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert repr(name.partition(":")[0]) in line
        assert "--trust-code" in line
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("command", ["evaluate", "report", "compare_first", "evaluate_pair", "predict", "inspect"])
def test_no_command_imports_or_calls_the_data_set_that_a_folder_names(command, runs, canary, tmp_path, capsys):
    for name in NAMES if command == "evaluate" else NAMES[:1]:
        change(tmp_path / "run", data__name=name)
        code, said = answer(READERS[command], runs, tmp_path / "run", capsys)
        # The second of a pair is evaluated on the first's data; others do not look at data.
        assert code == (0 if command in ("evaluate_pair", "predict", "inspect") else 2), said
        assert code == 0 or ("--trust-code" in said and repr(name.partition(":")[0]) in said)


@pytest.mark.parametrize("command", ["predict", "evaluate", "report"])
def test_no_command_imports_or_calls_the_parts_of_training_that_a_folder_names(command, runs, canary, tmp_path, capsys):
    folder = tmp_path / "run"
    for name in ("planted:Net", "canary:call", "a function given to fit"):
        names = dict.fromkeys(("loss__name", "optimizer__name", "schedule__name"), name)
        lists = {field: [name] for field in ("metrics", "data__augment__before", "data__augment__after")}
        change(folder, optimizer__b1=0.5, **names, **lists)
        code, said = answer(READERS[command], runs, folder, capsys)
        assert code == 0, said
        assert (f"evaluated without its own metrics, {name}: " in said) == (command == "evaluate")
    change(folder, data__augment__before=["planted:Net"])
    with pytest.raises(UntrustedError, match="names the augmentation 'planted:Net'"):
        inception_jax.load(folder).show_batch()


def test_own_metrics_are_evaluated_once_they_are_trusted(runs, tmp_path, capsys):
    shutil.copytree(runs / "first", tmp_path / "run")
    change(tmp_path / "run", metrics=["clu.metrics:Accuracy"])
    assert commands.main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert "accuracy" not in capsys.readouterr().out
    assert commands.main(["evaluate", str(tmp_path / "run"), "--json", "--trust-code"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert row["all"]["accuracy"] == pytest.approx(row["all"]["top1"])
    assert commands.main(["evaluate", str(tmp_path / "run"), "--trust-code"]) == 0
    header, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[5:8] == ["loss", "accuracy", "ECE"]


def test_runs_are_listed_whatever_they_name(runs, canary, tmp_path, capsys):
    change(tmp_path / "run", model__name="planted:Net", data__name="planted:data")
    assert commands.main(["runs", str(tmp_path)]) == 0
    assert "planted:Net" in capsys.readouterr().out


def test_no_reader_imports_or_calls_a_folders_writers_and_callbacks(runs, canary, tmp_path, capsys):
    change(tmp_path / "run", log__to=["planted:Net", "canary:call"], callbacks=["planted:Net", "canary:Net"])
    for command in ("predict", "report"):
        assert answer(READERS[command], runs, tmp_path / "run", capsys)[0] == 0
    assert commands.main(["runs", str(tmp_path)]) == 0


def text_fields():
    """Those that may hold a text: others are refused by their types."""
    default = default_config()
    for path in field_names(default):
        if get_field(default, path) is None or isinstance(get_field(default, path), str):
            yield path


@pytest.mark.parametrize("value", ["planted:Net", "canary:call"])
def test_no_field_of_a_folders_config_makes_anything_be_imported_or_called(value, runs, canary, tmp_path):
    """By the functions behind the commands: the network is loaded, and its data, where both can be."""
    kept = (tmp_path / "run" / "config.json").read_text()
    for path in [*text_fields(), "model.parent", "model.unknown", "unknown", "data.unknown"]:
        (tmp_path / "run" / "config.json").write_text(kept)
        change(tmp_path / "run", **{path.replace(".", "__"): value})
        try:
            loaded = run.load_run(tmp_path / "run")
            evaluate.load_for(loaded, "test", {})
        except UserError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "evaluate", "report", "export", "inspect"])
def test_no_field_of_a_folders_config_makes_a_command_import_or_call_anything(command, runs, canary, tmp_path, capsys):
    kept = (tmp_path / "run" / "config.json").read_text()
    for path in text_fields():
        (tmp_path / "run" / "config.json").write_text(kept)
        change(tmp_path / "run", **{path.replace(".", "__"): "planted:Net"})
        assert answer(READERS[command], runs, tmp_path / "run", capsys)[0] in (0, 2)


@pytest.mark.parametrize("name", ["logging:basicConfig", "os:system", "pip:main", "subprocess:Popen",
                                  "canary:Net", "planted_too:os.system", "planted_too:Dense"])  # fmt: skip
def test_trusted_or_not_what_is_no_network_is_not_called(name, canary, runs, tmp_path):
    (tmp_path / "run" / "planted_too.py").write_text("import os\nfrom flax.linen import Dense\n")
    folder = change(tmp_path / "run", model__name=name, model__filename=str(tmp_path / "new"), model__command="true")
    with pytest.raises(UserError, match="is not a network"):
        inception_jax.load(folder, trust_code=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["os:abort", "sys:exit", "site:main", "canary:Net", "builtins:breakpoint"])
def test_trusted_or_not_what_is_no_data_function_is_not_called(name, canary, runs, tmp_path):
    loaded = inception_jax.load(change(tmp_path / "run", data__name=name), trust_code=True)
    with pytest.raises(UserError, match="must be a function that can be called without arguments"):
        evaluate.load_for(loaded, "test", {})


def test_a_run_with_a_network_of_ones_own_is_used_once_it_is_trusted(tmp_path, monkeypatch, runs, capsys):
    (tmp_path / "net_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    made = untrained_run(tmp_path / "run", runs / "pictures", CLASSES, name="net_of_mine:Net", width=3)
    with pytest.raises(UntrustedError, match="names the model 'net_of_mine:Net'"):
        inception_jax.load(tmp_path / "run")
    images = np.zeros((1, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(inception_jax.load("run", trust_code=True).logits(images), made.logits(images))
    code, said = answer(READERS["predict"], runs, tmp_path / "run", capsys, "--trust-code")
    assert (code, said) == (0, "")

    config = default_config()
    config.init_from = str(tmp_path / "run")
    config.model.name = ""
    config.finetune.head = ("fc",)
    with pytest.raises(UntrustedError):
        initial_weights.with_network_of_weights(config, tmp_path / "new")
    trusted = initial_weights.with_network_of_weights(config, tmp_path / "new", trust_code=True)
    assert (trusted.model.name, trusted.model.width) == ("net_of_mine:Net", 3)
    # Who names the network needs no flag; another's name does.
    model = build_model(trusted, 4)
    key = jax.random.key(0)
    initial = initial_weights.load_initial(config.init_from, model, (16, 16, 3), key, own=trusted)
    np.testing.assert_array_equal(initial.variables["params"]["fc"]["bias"], made.variables["params"]["fc"]["bias"])
    with pytest.raises(UntrustedError):
        initial_weights.load_initial(config.init_from, model, (16, 16, 3), key, own=default_config())


def test_the_current_folder_comes_behind_all_others(tmp_path, monkeypatch):
    (tmp_path / "net_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = sys.path.copy()
    registry.resolve("model", "net_here:Net", models.MODELS)
    assert sys.path == [*before, str(tmp_path)]


def test_prepared_data_names_no_class_that_is_imported(tmp_path, canary, digits):
    """TFDS imports the classes in features.json, which lies where a folder's data.directory says."""
    shutil.copytree(digits / "digits", tmp_path / "data" / "digits")
    (features,) = (tmp_path / "data").rglob("features.json")
    content = features.read_text()
    for name in ("planted.Image", "planted.inner.Image"):
        features.write_text(content.replace("tensorflow_datasets.core.features.image_feature.Image", name))
        features.with_name("digests.json").unlink(missing_ok=True)  # whoever plants a class can do that, too
        with pytest.raises(UserError, match=f"names the class '{name}', which is not imported"):
            load_data("digits", directory=tmp_path / "data")


def test_an_exported_file_calls_nothing_but_operations_of_networks(tmp_path, runs):
    path = tmp_path / "first.stablehlo"
    exported, _ = export_run(inception_jax.load(runs / "first"), path, "stablehlo")
    (size,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((size, *exported.about["input"]["shape"][1:]), np.float32)
    # LAPACK stands for whatever JAX has compiled in: nothing here needs it.
    other = jax.export.export(jax.jit(lambda images: jnp.linalg.qr(images)[0].mean((1, 2))), platforms=("cpu",))
    content = bytes(other(shape).serialize())
    path.write_bytes(content)
    about = exported.about | {"sha256": hashlib.sha256(content).hexdigest()}
    path.with_name("first.stablehlo.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="calls lapack_sgeqrf_ffi, lapack_sorgqr_ffi, which is not allowed"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        # Of the package's own parts, what a person names, and Pillow's decoders by a list of ours.
        (r"\bimport_module\(|\b__import__\(", {"__init__.py", "registry.py", "images.py"}),
        (r"(?<![.\w])(?:exec|eval|compile)\(", {"config/files.py"}),
        (r"\bsys\.path\.insert\(|sys\.path\[:?0\]", set()),
        (r"allow_pickle=True|\b(?:un)?pickle\.loads?\(|\bjoblib\b|\btorch\.load\(|shell=True|os\.system\(", set()),
        (r"expanduser\(", {"files.py"}),
        (r"type=Path\b", set()),
    ],
)
def test_what_could_run_code_or_read_paths_otherwise_is_in_one_place(pattern, where):
    package = Path(inception_jax.__file__).parent
    found = [path for path in package.rglob("*.py") if re.search(pattern, path.read_text())]
    assert all(any(path.match(place) for place in where) for path in found)
