"""Notebooks: what their cells show, and that those of the documentation run."""

import base64
import io
import os
import runpy
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest
from PIL import Image

from inception_jax import process
from inception_jax.errors import UserError
from inception_jax.train import notebook
from inception_jax.train.console import Console
from inception_jax.train.stopping import Interrupted

ROOT = Path(__file__).parent.parent
SURFACE = ROOT / "tests" / "surface.ipynb"
DOCUMENTATION = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PAGES = runpy.run_path(str(ROOT / "docs" / "notebooks" / "pages.py"))  # the hook that makes pages of them
TEXT = 4096  # bytes: the most that a cell may show as text
# Training writes no report, as in other tests; the surface writes one by itself.
NO_REPORT = "from inception_jax.train import training\ntraining._write_report = lambda folder: None\n"
# Two modules of GoogLeNet, of which the site has all: a fourth of the time to compile.
TWO_MODULES = """
from inception_jax.models import googlenet
for table in (googlenet.TABLE_1, globals().get("TABLE_1", {{}})):
    for name in table.keys() - {kept}:
        del table[name]
"""
# What takes the place of a text in the source, so that networks are small.
SHORTER = {
    "surface": ("(8, 16)", "(4,)"),
    "fine_tune": ("(16, 32, 64)", "(4,)"),
    "look_inside_googlenet": (
        "config.model.name",
        TWO_MODULES.format(kept={"inception_3b", "inception_4a"}) + "config.model.name",
    ),
    "googlenet_on_mnist": (
        "class AuxHead",
        TWO_MODULES.format(kept={"pool_3", "inception_4a", "inception_4d"}) + "class AuxHead",
    ),
}
# Values of the cell "parameters" for few pictures and epochs.
PARAMETERS = {
    "look_inside_googlenet": {"EPOCHS": 1, "IMAGES": 128},
    "fine_tune": {"EPOCHS": 2, "FIRST_EPOCHS": 1},
    "googlenet_on_mnist": {
        "DATA": "digits",
        "EPOCHS": 1,
        "TRAIN": "train[:64]",
        "VALIDATION": "train[-32:]",
        "TEST": "test[:32]",
    },
}


class Shown(list):
    """What is displayed: (handle, bundle) of every call, as `notebook._show` gets it."""

    def __call__(self, handle, bundle, metadata=None):
        self.append((handle or len(self) + 1, bundle))
        return self[-1][0]

    @property
    def outputs(self):
        """What remains in the notebook: the last bundle of each handle."""
        return list(dict(self).values())


@pytest.fixture
def shown(monkeypatch):
    """A notebook's kernel, in which time stands still."""
    monkeypatch.setattr(process, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "_show", displayed := Shown())
    monkeypatch.setattr(notebook.time, "monotonic", lambda: 100.0)
    return displayed


def row(epoch):
    losses = {"train_loss": 1 / epoch, "validation_loss": 1.1 / epoch}
    return {"epoch": epoch, "learning_rate": 0.1, **losses, "train_top1": 0.5, "validation_top1": 0.4}


def test_training_shows_one_bar_and_one_picture_however_long_it_is(shown, capfd):
    with Console(3000, 10, batch_size=8) as console:
        console.metrics = ("loss", "top1", "recall")  # the last one is a user's own
        for epoch in range(1, 301):
            console.epoch(10 * epoch, row(epoch) | {"validation_recall": 0.25})
    bar, curves = shown.outputs
    assert all(sum(map(len, bundle.values())) < TEXT for _, bundle in shown if "image/png" not in bundle)
    assert '<progress value="3000" max="3000"' in bar["text/html"]
    assert "epoch 300/300" in bar["text/html"]
    assert "<th>validation recall</th>" in bar["text/html"]
    assert "<td>0.2500</td>" in bar["text/html"]
    assert bar["text/html"].count("<tr>") == 1 + notebook.EPOCHS_SHOWN
    assert "left" not in bar["text/plain"]
    assert Image.open(io.BytesIO(curves["image/png"])).width > 1000
    assert sum("image/png" in bundle for _, bundle in shown) == 2  # the first epoch, and the end
    assert capfd.readouterr() == ("", "")


def test_the_curves_are_those_of_the_epochs():
    figure = notebook.draw_curves([row(epoch) for epoch in (1, 2, 4)])
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    np.testing.assert_allclose(loss.lines[1].get_xydata(), [(1, 1.1), (2, 0.55), (4, 0.275)])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 0.5)


def test_a_stream_and_lines_are_as_elsewhere(shown, capsys):
    stream = io.StringIO()
    for options in ({"stream": stream}, {"mode": "lines"}):
        with Console(10, 5, batch_size=4, **options) as console:
            console.epoch(5, row(1))
    assert not shown
    assert stream.getvalue().startswith("epoch 1/2 done")
    assert capsys.readouterr().err == stream.getvalue()


def test_a_mistake_is_one_line():
    assert UserError("no\nsuch run")._render_traceback_() == ["UserError: no such run"]
    assert Interrupted("stopped after step 3", 2)._render_traceback_() == ["Interrupted: stopped after step 3"]


def executed(path, folder):
    """The notebook after its cells have run in the folder, as for the site but for less; Python shows all warnings."""
    book = PAGES["read"](path, PARAMETERS.get(path.stem, {}))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    old, new = SHORTER[path.stem]
    (cell,) = (cell for cell in code if old in cell.source)
    cell.source = cell.source.replace(old, new)
    code[0].source = NO_REPORT + code[0].source
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return PAGES["execute"](book, folder, PYTHONWARNINGS="default", **environment)


def check_outputs(book):
    """Every cell shows little text and nothing on standard error, and pictures that are some; returns their number."""
    pictures = 0
    for cell in book.cells:
        text = ""
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                assert "raises-exception" in cell.metadata.get("tags", ())
                text += "".join(output.traceback)
            elif output.output_type == "stream":
                assert output.name == "stdout", output.text
                text += output.text
            else:
                text += "".join(value for kind, value in output.data.items() if kind.startswith("text/"))
                if "image/png" in output.data:
                    check_picture(base64.b64decode(output.data["image/png"]))
                elif "image/svg+xml" in output.data:
                    assert ElementTree.fromstring(output.data["image/svg+xml"]).tag.endswith("svg")
                else:
                    continue
                pictures += 1
        assert len(text.encode()) <= TEXT, cell.source
        assert "Warning" not in text, text
    return pictures


def check_picture(content):
    with Image.open(io.BytesIO(content)) as picture:
        assert all(32 <= side <= 2400 for side in picture.size), picture.size
        assert len(np.unique(np.asarray(picture.convert("L")))) > 1


@pytest.mark.slow
def test_the_whole_surface(tmp_path):
    book = executed(SURFACE, tmp_path)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) >= 30
    assert check_outputs(book) >= 10
    assert all(cell.outputs for cell in code)
    (training,) = (cell for cell in code if 'workdir="runs/first"' in cell.source)
    log = "".join(output.text for output in training.outputs if output.output_type == "stream")
    assert log.startswith("device: 1 x cpu")
    assert "first: completed after" in log
    assert sum(output.output_type == "display_data" for output in training.outputs) == 2  # the bar and the curves
    (mistake,) = code[-1].outputs
    assert len(mistake.traceback) == 1
    assert mistake.traceback[0].startswith("UserError: runs/third")


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTATION, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation(path, tmp_path):
    assert check_outputs(executed(path, tmp_path)) >= 3


@pytest.mark.parametrize("path", [SURFACE, *DOCUMENTATION], ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
