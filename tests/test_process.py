"""What a process knows of itself."""

import os
import sys

import jax
import pytest

from inception_jax import process


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/env/bin/inception-jax", "train", "googlenet_digits"], "inception-jax train googlenet_digits"),
        (["/env/inception_jax/main.py", "--config=a b"], "python -m inception_jax.main '--config=a b'"),
        (["/env/inception_jax/__main__.py"], "python -m inception_jax"),
        (["-c", "train"], None),
        (["/env/bin/pytest"], None),
        (["/mine/main.py"], None),
    ],
)
def test_its_command_is_as_it_was_typed(arguments, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert process.command() == command


def test_the_environment_decides_which_programs_are_cached():
    process.use_compilation_cache()
    seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])  # see conftest.py
    assert jax.config.jax_persistent_cache_min_compile_time_secs == seconds
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
