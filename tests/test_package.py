"""The package itself: what a plain import offers, and the command as a module."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import inception_jax
from inception_jax.train.summary import versions

ROOT = Path(__file__).parent.parent
PLAIN_IMPORT = """
import sys
import inception_jax

assert "jax" not in sys.modules
assert inception_jax.ops.max_pool and inception_jax.steps.train_step and inception_jax.weights.PRETRAINED
"""


def test_a_plain_import_is_quick_and_has_the_modules():
    subprocess.run([sys.executable, "-c", PLAIN_IMPORT], check=True)


@pytest.mark.parametrize("name", inception_jax.__all__)
def test_every_public_name_is_there(name):
    assert getattr(inception_jax, name)
    assert name in dir(inception_jax)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        inception_jax.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert inception_jax.__version__ == version("inception-jax")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a Git checkout")
def test_a_run_of_a_checkout_records_its_commit():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    commit, _, changed = versions()["commit"].partition("-")
    assert head.stdout.startswith(commit)
    assert changed in ("", "dirty")


def test_the_package_has_type_information():
    assert Path(inception_jax.__file__).with_name("py.typed").exists()


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "inception_jax", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, f"inception-jax {version('inception-jax')}")
    result = subprocess.run([sys.executable, "-m", "inception_jax", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown command 'nonsense'" in result.stderr
