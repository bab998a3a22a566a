"""`inception-jax configs` and what the console command itself answers."""

import ast
import importlib.metadata
import subprocess
import sys

import pytest

from inception_jax import commands, main
from inception_jax.config.files import load_config, shipped_configs
from inception_jax.errors import UserError


def test_every_shipped_config_is_listed_with_what_it_is(capsys):
    assert commands.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines[: len(shipped_configs())])
    assert listed.keys() == shipped_configs().keys()
    for name, path in shipped_configs().items():
        assert path.read_text().startswith(f'"""{listed[name]}')


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: the following arguments are required: COMMAND"),
        (["configs", "--all"], "error: unrecognized arguments: --all"),
        (["evaluate"], "error: the following arguments are required: RUN"),
        (["train", "--config.batch_size=1"], "error: --config=NAME_OR_FILE is missing"),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys, argv, message):
    assert commands.main(argv) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith(message)
    assert (answer.err.count("\n"), answer.out) == (1, "")


def test_help_of_train_is_that_of_the_trainer(capsys):
    assert commands.main(["train", "--help"]) == 0
    assert "usage: inception-jax train --config=NAME_OR_FILE" in capsys.readouterr().out


def test_help_does_not_wait_for_what_it_does_not_need():
    code = "import sys; from inception_jax.commands import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "train", "--help", "optimizer"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "optimizer.momentum" in done.stdout
    assert not {"jax", "numpy", "tensorflow_datasets"} & set(done.stdout.splitlines()[-1].split())


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"inception-jax {importlib.metadata.version('inception-jax')}"


def test_a_config_is_printed_as_it_is(capsys):
    assert commands.main(["configs", "googlenet_digits"]) == 0
    assert capsys.readouterr().out == shipped_configs()["googlenet_digits"].read_text()
    assert commands.main(["configs", "googlenet_digit"]) == 2
    assert "Did you mean 'googlenet_digits'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_configs())
def test_a_copy_is_the_same_config_without_the_others_results(name, tmp_path, capsys):
    copy = tmp_path / "mine.py"
    assert commands.main(["configs", name, "--copy", str(copy)]) == 0
    assert load_config(copy).to_dict() == load_config(shipped_configs()[name]).to_dict()
    assert ast.get_docstring(ast.parse(copy.read_text())) == f"Started from the shipped config {name}."
    before = copy.read_bytes()
    assert commands.main(["configs", name, "--copy", str(copy)]) == 2  # nothing is overwritten
    assert "exists" in capsys.readouterr().err
    assert copy.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--copy", "mine.py"], "needs the name of a config"),
        (["googlenet_digits", "--copy", "mine.txt"], "must end in .py"),
        (["googlenet_digits", "--copy", "no/such/folder/mine.py"], "cannot write no/such/folder/mine.py"),
    ],
)
def test_a_copy_that_cannot_be_made(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["configs", *argv]) == 2
    assert message in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_train_takes_the_config_as_its_first_argument():
    flagged = main.parse_flags(["--config=googlenet_digits", "--config.batch_size=8"])
    assert main.parse_flags(["googlenet_digits", "--config.batch_size=8"]).config == flagged.config
    assert main.parse_flags(["googlenet_digits"]).workdir == flagged.workdir
    with pytest.raises(UserError, match="two configs are given, googlenet_digits and --config=googlenet_mnist"):
        main.parse_flags(["googlenet_digits", "--config=googlenet_mnist"])
    with pytest.raises(UserError, match="there is no config 'googlenet_digts': did you mean googlenet_digits"):
        main.parse_flags(["googlenet_digts"])
