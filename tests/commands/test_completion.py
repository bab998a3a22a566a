"""Completion with Tab, asked for as bash does."""

import os
import shutil
import subprocess
import sys

import pytest

from inception_jax import commands
from inception_jax.commands.completion import SHELLS, training
from inception_jax.config.fields import FIELDS
from inception_jax.config.files import shipped_configs

# What bash sets when Tab is pressed at the end of a line, whose words it also breaks at "=" and ":".
PRESS_TAB = """
eval "$(inception-jax completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
_python_argcomplete inception-jax
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def press_tab(tmp_path):
    program = tmp_path / "inception-jax"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m inception_jax "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def press(line):
        command = ["bash", "--norc", "-c", PRESS_TAB, "bash", line]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [word.strip() for word in done.stdout.splitlines()]

    return press


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes(press_tab):
    assert press_tab("inception-jax comp") == ["compare", "completion"]
    assert press_tab("inception-jax study resid") == ["residuals"]
    assert press_tab("inception-jax evaluate --tt") == ["--tta"]
    assert press_tab("inception-jax train --config=googlenet_dig") == ["googlenet_digits"]  # what follows the "="


def test_the_arguments_of_train():
    assert {*training("goo")} == {*shipped_configs()}
    assert "--config.optimizer.name=" in training("--")
    assert training("--config.schedule.name=c") == [
        f"--config.schedule.name={name}" for field in FIELDS if field.name == "schedule.name" for name in field.choices
    ]
    assert training("--config.deterministic=") == ["--config.deterministic=true", "--config.deterministic=false"]
    assert training("--config.nonsense=") == training("--config.num_epochs=") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_every_shell(shell, capsys):
    assert commands.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "inception-jax" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
