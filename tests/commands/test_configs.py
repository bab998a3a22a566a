"""`inception-jax configs` and what the console command itself answers."""

import importlib.metadata

import pytest

from inception_jax import commands
from inception_jax.config.files import shipped_configs


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


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("inception-jax")
