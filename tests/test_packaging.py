"""The wheel, installed apart from this checkout, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel is installed into; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={folder}", str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", f"--target={folder / 'site'}", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command in an empty folder, with the installed package before all others."""

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_console_command_lists_the_configs_of_the_wheel(run, installed):
    result = run(str(installed / "bin" / "inception-jax"), "configs")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"The files are in {installed / 'inception_jax' / 'configs'}\n")
    names = {line.split()[0] for line in result.stdout.split("\n\n")[0].splitlines()}
    assert names == {path.stem for path in (ROOT / "configs").glob("*.py")}


def test_a_shipped_config_is_found_by_name(run, installed):
    code = (
        "from inception_jax import main; from inception_jax.trained import report; "
        "flags = main.parse_flags(['--config=googlenet_cifar10']); "
        "print(flags.config.data.name, flags.workdir, report.__file__)"
    )
    result = run("-c", code)
    assert result.stdout.split() == [
        "cifar10",
        "runs/googlenet_cifar10",
        str(installed / "inception_jax" / "trained" / "report" / "__init__.py"),
    ]


def test_a_network_trains_from_the_wheel_to_its_report(run, tmp_path):
    result = run(
        "-m", "inception_jax.main", "--config=simple_cnn_cifar10", "--workdir=run", "--config.num_epochs=1",
        "--config.data.name=digits", "--config.data.splits.train=train[:20%]",
        "--config.data.splits.validation=train[90%:]", f"--config.data.directory={tmp_path / 'data'}",
        "--config.num_devices=1", "--config.log.tensorboard=false", "--config.data.augment.pad_and_crop=0",
        "--config.data.image_size=16", "--config.model.stage_features=(4,8)",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "<h1>run</h1>" in (tmp_path / "run" / "report.html").read_text()
