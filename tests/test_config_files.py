"""Config files as people write them, values as they type them, and paths as shells leave them."""

import importlib.machinery
import sys
from pathlib import Path

import numpy as np
import pytest
from loading import load_data
from PIL import Image

import inception_jax
from inception_jax import commands, files, main
from inception_jax.config import default_config, validate
from inception_jax.config.files import find_config_and_argument, load_config, run_file
from inception_jax.errors import UserError
from inception_jax.runs import dataset, folder
from inception_jax.studies.plan import PlannedRun
from inception_jax.train.initial import with_network_of_weights
from inception_jax.trained import predict

START = "from inception_jax.config import default_config\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and another one as the home."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


def parse(*argv):
    return main.parse_flags(list(argv)).config


def write(path, body, head=START):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}\ndef get_config(*arguments):\n    c = default_config()\n    {body}\n    return c\n")
    return path


def test_dataclasses_with_annotations_as_texts_work_in_a_config(here):
    head = f"from __future__ import annotations\nfrom dataclasses import dataclass\n{START}"
    head += "@dataclass\nclass Rates:\n    high: float = 0.02\n    low: list[float] | None = None\n"
    write(here / "rates.py", "c.schedule.learning_rate = Rates().high", head)
    before = set(sys.modules)
    assert parse("--config=rates.py").schedule.learning_rate == 0.02
    assert {name for name in sys.modules.keys() - before if "rates" in name} == set()


def test_a_config_may_be_called_like_an_installed_module(here):
    write(here / "json.py", "c.seed = 3")
    json = sys.modules["json"]
    assert parse("--config=json.py").seed == 3
    assert sys.modules["json"] is json


def test_modules_beside_a_config_and_in_the_current_folder_are_found(here, tmp_path):
    path, elsewhere = sys.path.copy(), tmp_path / "elsewhere"
    write(elsewhere / "one.py", "c.seed, c.batch_size, c.num_epochs = SEED, SIZE, EPOCHS", "\n".join([
        START, "from seeds import SEED", "from sizes import SIZE", "from parts.epochs import EPOCHS",
    ]))  # fmt: skip
    (elsewhere / "seeds.py").write_text("SEED = 5\n")
    (elsewhere / "sizes.py").write_text("SIZE = 32\n")
    (elsewhere / "parts").mkdir()
    (elsewhere / "parts" / "__init__.py").write_text("")
    (elsewhere / "parts" / "epochs.py").write_text("EPOCHS = 7\n")
    (here / "sizes.py").write_text("SIZE = 64\n")  # the config's own folder comes first
    config = parse(f"--config={elsewhere / 'one.py'}")
    assert (config.seed, config.batch_size, config.num_epochs) == (5, 32, 7)
    # Another file's neighbour of the same name is another module, and a changed one is read anew.
    (here / "seeds.py").write_text("SEED = 6\n")
    write(here / "two.py", "c.seed = SEED", f"{START}from seeds import SEED")
    assert parse("--config=two.py").seed == 6
    (here / "seeds.py").write_text("SEED = 9\n")
    assert parse("--config=two.py").seed == 9
    assert sys.path == path
    assert not list(tmp_path.glob("*/__pycache__"))


def test_what_is_installed_comes_before_what_lies_beside_a_config(here):
    (here / "colorsys.py").write_text("raise SystemExit\n")
    write(here / "one.py", "c.seed = 4", f"{START}import colorsys")
    sys.modules.pop("colorsys", None)
    assert parse("--config=one.py").seed == 4
    assert importlib.machinery.PathFinder.find_spec("colorsys").origin == sys.modules["colorsys"].__file__


def test_a_config_is_given_its_argument(here):
    write(here / "sized.py", "c.batch_size = {'small': 8, 'a:b': 16}[arguments[0]] if arguments else 4")
    assert parse("--config=sized.py").batch_size == 4
    config, workdir, *_ = main.parse_flags(["--config=sized.py:small"])
    assert (config.batch_size, workdir) == (8, Path("runs/sized-small"))
    assert parse("--config=sized.py:a:b").batch_size == 16
    write(here / "with:colon.py", "c.batch_size = 2")
    assert parse("--config=with:colon.py").batch_size == 2
    planned = PlannedRun("v", 0, "sized.py:small", {}, here)
    assert planned.load_config().batch_size == 8
    (here / "fixed.py").write_text(f"{START}def get_config():\n    return default_config()\n")
    (here / "wants.py").write_text(f"{START}def get_config(size):\n    return default_config()\n")
    with pytest.raises(UserError, match=r"fixed.py.*it takes no argument"):
        parse("--config=fixed.py:small")
    with pytest.raises(UserError, match=r"wants.py.*it needs an argument: give FILE:ARGUMENT"):
        parse("--config=wants.py")
    with pytest.raises(UserError, match=r"there is no config 'nothing.py'"):
        parse("--config=nothing.py:small")


def test_a_shipped_name_is_the_shipped_config(here):
    (here / "googlenet_digits").write_text("raise SystemExit\n")
    assert find_config_and_argument("googlenet_digits")[0].parent != Path()


@pytest.mark.parametrize("path", ["configs/googlenet_digits.py", "googlenet_digits.py"])
def test_the_path_in_a_checkout_works_elsewhere(here, path):
    assert find_config_and_argument(path) == find_config_and_argument("googlenet_digits")
    own = here / path
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    assert find_config_and_argument(path)[0].samefile(own)  # a file that exists goes first
    with pytest.raises(UserError, match="there is no config"):
        find_config_and_argument("elsewhere/googlenet_digits.py")


FROZEN = "import ml_collections\ndef get_config():\n    c = default_config(); c.seed = 3\n    c.data.classes = ('a',)\n"


def test_a_frozen_config_can_be_changed_as_any_other(here):
    (here / "frozen.py").write_text(f"{START}{FROZEN}    return ml_collections.FrozenConfigDict(c)\n")
    flags = [
        "--config.batch_size=16",
        "--config.init_from=x",
        "--config.model.dropout_rate=0.5",
        "--config.model.width=3",
    ]
    config = parse("--config=frozen.py", *flags)
    found = (config.seed, config.batch_size, config.init_from, config.model.dropout_rate, config.model.width)
    assert found == (3, 16, "x", 0.5, 3)
    assert config.data.classes == ("a",)
    assert config.data.get_type("image_size") is int


@pytest.mark.parametrize(
    "body",
    ["c = ml_collections.ConfigDict(); c.model = 'ResNet50'; c.batch_size = 32", "c = ml_collections.ConfigDict()",
     "c = ml_collections.FrozenConfigDict({'seed': 3})", "c.unlock(); del c.schedule.factor",
     "c.unlock(); c.model = None"],
)  # fmt: skip
@pytest.mark.parametrize("command", [["train"], ["data"], ["evaluate", "RUN"]])
def test_a_config_of_another_kind_is_answered_in_a_line(body, command, here, capsys):
    write(here / "other.py", body, f"{START}import ml_collections")
    assert commands.main([*command, "--config=other.py"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: config file other.py: the config has no field ")
    assert said.endswith(": start it from inception_jax.config.default_config()\n")
    assert len(said.splitlines()) == 1


CLASSES = [
    ("1,2", ("1", "2")),
    ("007,042", ("007", "042")),
    ("(1, 2)", ("1", "2")),
    ("[1.50,1e5,0x10]", ("1.50", "1e5", "0x10")),
    ("True,None", ("True", "None")),
    ("None", ("None",)),
    ("kite,crane (bird)", ("kite", "crane (bird)")),
    ("crane (bird),kite", ("crane (bird)", "kite")),
    ("(a),(b)", ("(a)", "(b)")),
    ("[x] y,z", ("[x] y", "z")),
    ('["a,b","c"]', ("a,b", "c")),
    ('"a,b",c', ("a,b", "c")),
    ("('a,b', 'c')", ("a,b", "c")),
    ("('all',)", ("all",)),
    ("don't know,yes", ("don't know", "yes")),
    ('5" disk,3" disk', ('5" disk', '3" disk')),
    ("a\\d,b", ("a\\d", "b")),
    ("Füchsin, 🦊 ", ("Füchsin", "🦊")),
    ("cat", ("cat",)),
    ("", ()),
    ("()", ()),
]


@pytest.mark.parametrize(("text", "names"), CLASSES)
def test_names_of_classes_are_texts_whatever_they_look_like(text, names):
    for argv in ([f"--config.data.classes={text}"], ["--config.data.classes", text]):
        config = parse("--config=googlenet_digits", *argv)
        assert config.data.classes == names
        validate(config)
    # A study hands its fields to training as texts.
    for value in (names, list(names)):
        planned = PlannedRun("v", 0, "googlenet_digits", {"data.classes": value}, Path("run"))
        assert planned.load_config().data.classes == names


def test_a_quote_that_is_not_closed_is_named():
    with pytest.raises(UserError, match=r'--config.data.classes="a,b is not allowed: unexpected end of data'):
        parse("--config=googlenet_digits", '--config.data.classes="a,b')


@pytest.mark.parametrize("field", ["init_from", "model.dropout_rate", "model.norm", "data.hold_out", "data.image_size",
                                   "data.folder", "model.aux_heads", "model.own_option"])  # fmt: skip
def test_none_unsets_what_may_be_unset(field, here):
    values = {"init_from": "'a'", "model.dropout_rate": 0.5, "model.norm": "'lrn'", "data.hold_out": 0.1,
              "data.image_size": 8, "data.folder": "'a'", "model.aux_heads": True, "model.own_option": 3}  # fmt: skip
    write(here / "set.py", f"c.{field} = {values[field]}")
    for argv in ([f"--config.{field}=None"], [f"--config.{field}=7", f"--config.{field}", "None"]):
        if field == "model.aux_heads" and len(argv) > 1:
            argv = argv[1:]  # 7 is no value of a switch
        config = parse("--config=set.py", *argv)
        section, _, name = field.rpartition(".")
        assert (config[section] if section else config)[name] is None
        validate(config)
    planned = PlannedRun("v", 0, "set.py", {field: None}, here)
    assert (planned.load_config()[section] if section else planned.load_config())[name] is None


def test_the_last_of_two_values_holds():
    config = parse("--config=googlenet_digits", "--config.init_from=None", "--config.init_from=x")
    assert config.init_from == "x"


def test_none_is_no_value_of_other_fields():
    with pytest.raises(UserError, match=r"--config.batch_size=None is not allowed: it must be a whole number"):
        parse("--config=googlenet_digits", "--config.batch_size=None")


def test_a_warm_up_that_is_longer_than_the_run_is_said(caplog):
    config = default_config()
    config.num_epochs, config.schedule.warmup_epochs = 12, 12.0
    validate(config)
    assert not caplog.messages
    config.schedule.warmup_epochs = 50.0
    validate(config)
    (line,) = caplog.messages
    assert "schedule.warmup_epochs=50 is longer than the run, num_epochs=12" in line


def test_an_expanded_path_is_below_the_home(here):
    home = here.parent / "home"
    assert files.expand("~/a") == files.expand(Path("~/a")) == home / "a"
    assert files.expand("~") == home
    assert files.expand("a~/~b") == Path("a~/~b")
    for empty in ("", " "):
        with pytest.raises(UserError, match="the folder is empty; is a shell variable unset"):
            files.expand(empty, "the folder")


PATHS = [
    ["train", "--config=googlenet_digits", "--workdir="],
    ["train", "--config=googlenet_digits", "--config.init_from="],
    ["train", "--config=googlenet_digits", "--config.init_from", ""],
    ["train", "--config=googlenet_digits", "--config.data.folder="],
    ["train", "--config=googlenet_digits", "--config.data.directory="],
    ["train", "--config=googlenet_digits", "--config.data.archives= "],
    ["data", "image_folder", "--folder", ""],
    ["data", "image_folder", "--config.data.folder="],
    ["data", "mnist", "--archives="],
    ["data", "digits", "--data-dir="],
    ["data", "digits", "--sheet="],
    ["predict", "", "x.png"],
    ["evaluate", ""],
    ["evaluate", "x", "--class-map="],
    ["evaluate", "x", "--grayscale-run="],
    ["evaluate", "x", "--confusion="],
    ["evaluate", "x", "--predictions="],
    ["evaluate", "x", "--data", "image_folder", "--folder="],
    ["export", "", "--format", "onnx"],
    ["export", "x", "--format", "onnx", "--output="],
    ["report", ""],
    ["report", "x", "--output="],
    ["runs", ""],
    ["compare", "x", ""],
    ["compare", "x", "y", "--chart="],
    ["serve", ""],
    ["inspect", ""],
    ["inspect", "googlenet", "resnet18", "--chart="],
    ["study", "residuals", "--workdir="],
]


@pytest.mark.parametrize("argv", PATHS, ids=" ".join)
def test_an_empty_path_is_refused(argv, here, capsys):
    """It is what a variable of the shell that is not set becomes, and Python would take it for the current folder."""
    assert commands.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "is empty; is a shell variable unset" in line
    assert not list(here.iterdir())


@pytest.mark.parametrize("path", ["init_from", "data.folder", "data.archives", "data.directory"])
def test_an_empty_path_in_a_config_is_refused(path):
    config = default_config()
    config.update_from_flattened_dict({path: ""})
    with pytest.raises(UserError, match=f"{path} is empty"):
        validate(config)


def test_the_paths_of_pictures_are_expanded_and_not_empty(here):
    assert list(predict.find_pictures(["~/a.png", "./b.png", "-"])) == [str(files.expand("~/a.png")), "./b.png", "-"]
    with pytest.raises(UserError, match="the path of a picture is empty"):
        list(predict.find_pictures([""]))


TILDES = [
    ["predict", "~/no", "x.png"],
    ["evaluate", "~/no"],
    ["export", "~/no", "--format", "onnx"],
    ["report", "~/no"],
    ["runs", "~/no"],
    ["compare", "~/no", "~/no"],
    ["serve", "~/no", "--port=0"],
    ["inspect", "~/no"],
    ["train", "--config=~/no"],
    ["study", "~/no"],
    ["evaluate", "x", "--class-map=~/no"],
    ["data", "image_folder", "--folder=~/no"],
    ["data", "image_folder", "--config.data.folder=~/no"],
    ["data", "--config=~/no"],
]


@pytest.mark.parametrize("argv", TILDES, ids=" ".join)
def test_a_tilde_is_the_home_in_every_path(argv, here, capsys):
    assert commands.main(argv) == 2
    said = capsys.readouterr().err
    assert str(here.parent / "home" / "no") in said or "there is no config '~/no'" in said or "study '~/no'" in said
    assert not list(here.iterdir())


def test_what_is_below_the_home_is_found_and_written_there(here, monkeypatch, digits, trained, capsys):
    home = here.parent / "home"
    (home / "runs").symlink_to(trained.parent)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(home / "zero.png")
    write(home / "mine.py", "c.seed = 8")
    assert parse("--config=~/mine.py").seed == 8
    assert main.parse_flags(["--config=~/mine.py", "--workdir=~/new"]).workdir == home / "new"
    assert commands.main(["predict", "~/runs/run", "~/zero.png"]) == 0
    assert commands.main(["evaluate", "~/runs/run", "--confusion=~/confusion.csv"]) == 0
    assert (home / "confusion.csv").is_file()
    assert commands.main(["runs", "~/runs"]) == 0
    assert inception_jax.load("~/runs/run").folder == home / "runs" / "run"
    config = default_config()
    config.init_from, config.model.name, config.data.directory = "~/runs/run", "", str(digits)
    assert with_network_of_weights(config, here / "new").model.name == "simple_cnn"
    config.data.directory = "~/prepared"
    dataset.load_data(config)
    assert (home / "prepared" / "digits").is_dir()
    with pytest.raises(UserError, match="folder of pictures is empty"):
        load_data("image_folder", folder="")
    assert not list(here.iterdir())
    with pytest.raises(UserError, match="workdir is empty"):
        inception_jax.train_and_evaluate(config, "")
    with pytest.raises(UserError, match="the run's folder is empty"):
        inception_jax.load("")


def test_a_kept_config_with_an_empty_init_from_is_as_it_was(tmp_path):
    config = default_config()
    config.init_from = ""
    (tmp_path / "config.json").write_text(config.to_json())
    assert folder.read_config(tmp_path / "config.json").init_from is None


def test_a_config_file_that_fails_names_its_line_once(here):
    (here / "broken.py").write_text(f"{START}def get_config():\n    from helper import broken\n    return broken()\n")
    (here / "helper.py").write_text("def broken():\n    return undefined\n")
    with pytest.raises(UserError, match=r"config file broken.py, line 4: NameError: name 'undefined' is not defined"):
        load_config(Path("broken.py"))
    assert isinstance(run_file(Path("broken.py"), "nothing"), type(None))
