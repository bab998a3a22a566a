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


@pytest.fixture(autouse=True)
def single_precision_afterwards():
    """compute_dtype="float64" switches on JAX's 64 bits for good, which the next test does not expect."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory, digits) -> Path:
    """The folder of a finished run: a small network that knows most of the digits."""
    from inception_jax import train
    from inception_jax.config_files import find_config, load_config, override

    folder = tmp_path_factory.mktemp("trained") / "run"
    config = load_config(find_config("googlenet_digits"))
    fields = {"model.name": "simple_cnn", "model.stage_features": "(8, 16)", "model.norm": "batch", "num_epochs": "3"}
    fields |= {"schedule.learning_rate": "0.05", "average_decay": "0"}  # for so few epochs
    fields |= {"data.directory": str(digits), "log.tensorboard": "False"}
    override(config, ["", *(f"--config.{name}={value}" for name, value in fields.items())])
    train.train_and_evaluate(config, folder)
    return folder
