"""Each command started twice at the same time, in one folder and with the same files to write."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
from fake_runs import fake_plan
from PIL import Image

from inception_jax import commands
from inception_jax.files import held
from inception_jax.runs.run import load_run
from inception_jax.trained.export import load_exported

STUDY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_runs import make_study

def get_study():
    return make_study()
"""
TRAIN = (
    "train --config=googlenet_digits --workdir={place}/run --config.model.name=simple_cnn --config.model.norm=none "
    "--config.model.stage_features=(4,8) --config.num_epochs=20 --config.data.splits.train=train[:640] "
    "--config.num_devices=1"
)
# By command, the exit codes of the two, in order.
COMMANDS = {
    TRAIN: [0, 2],
    "study {place}/widths.py --form smoke --only narrow --seeds 0 --workdir={place}/studies": [0, 2],
    "evaluate {run} --split test --predictions {place}/p.npz --confusion {place}/c.csv": [0, 0],
    "report {run} --quick --output {place}/report.html": [0, 0],
    "report {run} --quick --format markdown --output {place}/page": [0, 0],
    "export {run} --format stablehlo --platforms cpu --output {place}/net": [0, 0],
    "compare {run} {run} --split test --images 8 --chart {place}/layers.png": [0, 0],
    "inspect simple_cnn resnet18 --no-latency --chart {place}/networks.png": [0, 0],
    "data digits --data-dir {place}/data --sheet {place}/sheet.png": [0, 0],
    "predict {run} {place}/picture.png": [0, 0],
    "runs {run}/..": [0, 0],
    "configs": [0, 0],
}


def check(place, trained):
    """Whatever was written there is whole."""
    if (place / "run").exists():
        with (place / "run" / "metrics.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(10, 201, 10))
        assert load_run(place / "run", "latest").step == 200
    if (place / "p.npz").exists():
        assert len(np.load(place / "p.npz")["labels"]) == 355
        assert len((place / "c.csv").read_text().splitlines()) == 11
    if (place / "net").exists():
        assert load_exported(place / "net").class_names == load_run(trained).class_names
    for page in place.rglob("report.html"):
        assert page.read_text().rstrip().endswith("</html>")
    for file in place.rglob("results.json"):
        assert json.loads(file.read_text())["form"] == "smoke"
    for page in place.rglob("report.md"):
        assert page.read_text().startswith("# run")
    for picture in place.rglob("*.png"):
        Image.open(picture).load()
    assert not [path for path in place.rglob(".*") if path.name != ".digits.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_neither_damages_what_the_other_does(command, trained, digits, tmp_path):
    (tmp_path / "widths.py").write_text(STUDY)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "picture.png")
    words = [word.format(run=trained, place=tmp_path) for word in command.split()]
    program, *words = [programs.TRAINER, *words[1:]] if words[0] == "train" else [programs.STUDIES, *words]
    command_line = [sys.executable, "-c", program, *words]
    options = {"env": os.environ | {"INCEPTION_JAX_DATA": str(digits)}, "text": True}
    two = [subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) for _ in range(2)]
    said = [process.communicate()[1] for process in two]
    assert sorted(process.returncode for process in two) == COMMANDS[command], said
    assert not any("Traceback" in text for text in said)
    refused = [text.splitlines()[-1] for text, process in zip(said, two, strict=True) if process.returncode == 2]
    assert all(line.startswith("error: another process (pid ") for line in refused)
    check(tmp_path, trained)


def test_a_study_started_twice_is_answered_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "widths.py").write_text(STUDY)
    plan = fake_plan(tmp_path / "work", wide=(0.90, 0.92, 0.91), narrow=(0.80, 0.81, 0.805))
    command = ["study", str(tmp_path / "widths.py"), "--workdir", str(tmp_path / "work")]
    before = sorted(plan.folder.rglob("*"))
    with held(plan.folder, "the study's folder", "is running the study"):
        assert commands.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: another process (pid {os.getpid()}, host ")
    assert line.endswith(f"is running the study in {plan.folder}")
    assert sorted(plan.folder.rglob("*")) == before
    monkeypatch.setattr("inception_jax.studies.extras.measure_all", lambda table: {})
    assert commands.main(command) == 0
