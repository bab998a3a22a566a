"""Every output of every command on a disk without room: code 4, one line, what was there before, and nothing else."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_runs import fake_plan
from PIL import Image
from runs import untrained_resnet

from inception_jax import commands, main, process

STUDY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_runs import make_study

def get_study():
    return make_study()
"""
# By command, what it writes: {disk} is the full one, {run} and {resnet} are finished runs.
OUTPUTS = {
    "evaluate {run} --split test --predictions {disk}/p.npz": ["p.npz"],
    "evaluate {run} --split test --predictions {disk}/p.csv": ["p.csv"],
    "evaluate {run} --split test --confusion {disk}/c.png": ["c.png"],
    "evaluate {run} --split test --confusion {disk}/c.svg": ["c.svg"],
    "evaluate {run} --split test --confusion {disk}/c.csv": ["c.csv"],
    "compare {run} {run} --split test --images 8 --chart {disk}/layers.pdf": ["layers.pdf"],
    "inspect simple_cnn --diagram {disk}/network.svg": ["network.svg"],
    "inspect simple_cnn resnet18 --no-latency --chart {disk}/networks.png": ["networks.png"],
    "report {run} --quick --output {disk}/report.html": ["report.html"],
    "report {run} --quick --format markdown --output {disk}/page": ["page/report.md", "page/curves-1.png"],
    "export {run} --format stablehlo --platforms cpu --output {disk}/net": ["net", "net.json"],
    "export {run} --format onnx --output {disk}/net.onnx": ["net.onnx", "net.onnx.json"],
    "export {resnet} --format torchvision --output {disk}/w.safetensors": ["w.safetensors"],
    "export {resnet} --format torchvision --output {disk}/w.pth": ["w.pth"],
    "data digits --sheet {disk}/sheet.png": ["sheet.png"],
    "data digits --data-dir {disk}/data": [],
    "study {study} --workdir {disk}/studies": [
        f"studies/widths/full/{name}" for name in ("report.html", "report.tex", "results.json")
    ],
}
PRINTING = (
    "--help",
    "--version",
    "configs",
    "runs {run}/..",
    "runs {run}/.. --json",
    "runs {run}/.. --csv",
    "inspect simple_cnn",
    "data",
    "data digits",
    "study",
    "train --help",
    "evaluate {run} --split test",
    "evaluate {run} --split test --json",
    "compare {run} {run} --split test --images 0",
    "report {run} --quick",
    "export {run} --format stablehlo --platforms cpu --output {place}/net",
    "predict {run} {place}/picture.png",
    "predict {run} {place}/picture.png --csv",
    "predict {run} {place}/picture.png --json",
)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    return untrained_resnet(tmp_path_factory.mktemp("runs") / "resnet")


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


def assert_says_no_room(capsys):
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("error: cannot write ")
    assert "No space left on device" in shown[-1]
    assert not any(line.startswith(("error", "Traceback", "  File")) for line in shown[:-1])


@pytest.mark.parametrize("command", OUTPUTS)
def test_what_a_command_cannot_write_leaves_what_was_there(
    command, trained, resnet, disk, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    monkeypatch.setattr("inception_jax.studies.extras.measure_all", lambda table: {})
    if command.endswith(".pth"):
        pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    (tmp_path / "widths.py").write_text(STUDY)
    if command.startswith("study"):
        fake_plan(disk / "studies", wide=(0.90, 0.92, 0.91), narrow=(0.80, 0.81, 0.805))
    for name in OUTPUTS[command]:
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        (disk / name).write_text("what was there before")
    fill(disk)
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    places = {"run": trained, "resnet": resnet, "disk": disk, "study": tmp_path / "widths.py"}
    assert commands.main([word.format(**places) for word in command.split()]) == process.NOT_WRITTEN
    assert_says_no_room(capsys)
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before


def test_a_training_run_says_so_too(disk, digits, monkeypatch, tmp_path, capsys):
    (tmp_path / "small.py").write_text(
        "from inception_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.model.name = 'simple_cnn'\n    return config\n"
    )
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    fill(disk)
    flags = [f"--config={tmp_path / 'small.py'}", "--config.num_devices=1", f"--workdir={disk / 'run'}"]
    assert main.main(flags) == process.NOT_WRITTEN
    assert_says_no_room(capsys)
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("command", PRINTING)
def test_a_full_standard_output_is_said_in_one_line(command, trained, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "picture.png")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert commands.main([word.format(run=trained, place=tmp_path) for word in command.split()]) == 4
    assert_says_no_room(capsys)


@pytest.mark.parametrize("program", ["inception_jax.main", "inception_jax.commands"])
@pytest.mark.parametrize("streams", [">/dev/full", ">/dev/full 2>&1", ">&-"])
def test_a_program_whose_output_is_full_or_closed_has_no_more_to_say_at_its_end(program, streams):
    code = f"import {program} as program; from inception_jax import process; process.leave(program.main(['--help']))"
    ended = subprocess.run(f'"{sys.executable}" -c "{code}" {streams}', shell=True, capture_output=True, text=True)
    assert ended.returncode == (0 if streams == ">&-" else 4), ended.stderr
    assert "Traceback" not in ended.stderr
    assert streams == ">&-" or ended.stderr.count("\n") == (streams == ">/dev/full")
