"""What all tests share: eight virtual CPU devices, a cache of compiled programs, the data sets."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

# JAX reads these when it is imported; the programs that tests start read them, too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), "inception_jax-tests")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

sys.path.insert(0, str(Path(__file__).parent))  # `import peers`

from inception_jax import data


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
