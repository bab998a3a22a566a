"""What all tests share: eight virtual CPU devices, a cache of compiled programs, the data sets."""

import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

# JAX reads these when it is imported; the programs that tests start read them, too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir(), "inception_jax-tests")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiling takes most of the time of small networks, a fourth of it so: what XLA makes of a program stays the same, but
# LLVM takes it as it is, and kernels of fused operations are made as they were before JAX 0.10 (0.12 has no such flag).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jax").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

sys.path.insert(0, str(Path(__file__).parent))  # `import peers`

import jax
import jaxtyping
import numpy as np


class _Arrays(type):
    def __instancecheck__(cls, value):
        return isinstance(value, jax.Array | np.ndarray)


class Array(metaclass=_Arrays):
    """What annotations call an Array is one of JAX or of NumPy, which JAX takes, too."""


jaxtyping.Array = Array
# In these packages every call checks the annotated types, shapes and dtypes included. pytest's `--jaxtyping-packages`
# would do the same, but pytest-xdist does not give it to its workers. `float` allows int, as for type checkers.
CHECKED = ("inception_jax.ops", "inception_jax.steps", "inception_jax.data.augment")
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from inception_jax import data, files  # noqa: E402 (once the hook is there)


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that none of them is all that is left in the end."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(autouse=True)
def single_precision_afterwards():
    """compute_dtype="float64" switches on JAX's 64 bits for good, which the next test does not expect."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session", autouse=True)
def without_reports():
    """Training writes no report, whose charts take as long as a small network's epochs; `reports` switches it on."""
    training = sys.modules.get("inception_jax.train.training")
    if training is None:  # no test that was collected trains in this process
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        write_report = training._write_report
        patch.setattr(training, "_write_report", lambda folder: None)
        yield write_report


@pytest.fixture
def reports(without_reports, monkeypatch):
    """Training ends with its report, as it does for users."""
    if without_reports:
        monkeypatch.setattr("inception_jax.train.training._write_report", without_reports)


@pytest.fixture
def drawn():
    """Figures are drawn, see `empty_figures`."""


@pytest.fixture
def empty_figures(request, monkeypatch):
    """Figures are files without content, since drawing takes most of a page's time, unless a test asks for `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(
            "inception_jax.inspection.drawing.write_figure", lambda figure, file, kind, **options: file.write(b"<svg>")
        )


@pytest.fixture(scope="session")
def originals() -> Path:
    """The folder with the published archives of MNIST and CIFAR-10."""
    folder = os.environ.get("INCEPTION_JAX_TEST_DATA")
    if not folder:
        pytest.skip("INCEPTION_JAX_TEST_DATA names no folder with the original archives")
    return Path(folder)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that pytest's workers have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def digits(shared) -> Path:
    """A data directory in which the digits are prepared."""
    data.prepare("digits", directory=shared / "digits")
    return shared / "digits"


@pytest.fixture
def prepared(shared, monkeypatch) -> Path:
    """The default data directory of a test: whatever is prepared there is for the others, too."""
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(shared / "prepared"))
    return shared / "prepared"


@pytest.fixture(scope="session")
def trained(shared, tmp_path_factory, digits) -> Path:
    """The folder of a finished run: a small network that knows most of the digits. Each worker has a copy."""
    with files.locked(shared / "trained.lock"):
        if not (shared / "trained").exists():
            train_small_network(shared / "training" / "run", digits)
            (shared / "training" / "run").rename(shared / "trained")
    return shutil.copytree(shared / "trained", tmp_path_factory.mktemp("trained") / "run")


def train_small_network(folder: Path, digits: Path) -> None:
    from inception_jax import train
    from inception_jax.config.files import find_config, load_config, override

    config = load_config(find_config("googlenet_digits"))
    fields = {"model.name": "simple_cnn", "model.stage_features": "(8, 16)", "model.norm": "batch", "num_epochs": "3"}
    fields |= {"schedule.learning_rate": "0.05", "average_decay": "0"}  # for so few epochs
    fields |= {"data.directory": str(digits), "log.tensorboard": "False"}
    override(config, ["", *(f"--config.{name}={value}" for name, value in fields.items())])
    train.train_and_evaluate(config, folder)
