"""What all tests share: eight virtual CPU devices, a cache of compiled programs, the data sets."""

import os
import sys
import tempfile
from pathlib import Path

import jax
import pytest

# Devices are counted when JAX starts, so this stands before any test's first array.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(tempfile.gettempdir()) / "inception_jax-tests"
jax.config.update("jax_compilation_cache_dir", str(cache))

sys.path.insert(0, str(Path(__file__).parent))  # `import peers`

from inception_jax import data  # noqa: E402


@pytest.fixture(scope="session")
def originals() -> Path:
    """The folder with the published archives of MNIST and CIFAR-10."""
    folder = os.environ.get("INCEPTION_JAX_TEST_DATA")
    if not folder:
        pytest.skip("INCEPTION_JAX_TEST_DATA names no folder with the original archives")
    return Path(folder)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A data directory in which the digits are prepared."""
    directory = tmp_path_factory.mktemp("digits")
    data.prepare("digits", directory=directory)
    return directory
