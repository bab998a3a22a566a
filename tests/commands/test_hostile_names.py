"""Names of classes, files and runs that would steer a terminal, a spreadsheet or a browser, through every command."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from runs import untrained_run

from inception_jax.commands import main
from inception_jax.runs.records import list_runs
from inception_jax.text import printable
from inception_jax.trained.report import findings, write_report

CLASSES = (
    "\x1b[31mred\x1b[0m",
    "line\nerror: disk full",
    "bell\x07\rback",
    "\x9b2J",
    "bidi\u202eevil",
    "lines\u2028ends",
    "=cmd|' \x7f C calc'!A0",
    "@SUM(1)",
    "'quoted",
    "-1",
    "$x^2$",
    "$open",
    "<img src=x onerror=alert(1)>",
    "{{7*7}}|`x`](y)",
    "\u65e5\u672c\u8a9e",
    "x" * 240,
)
FILES = (b"\xff.png", b"\x1b]0;title\x07.png", b"a\nerror: b.png", b"=1+1.png", "\u202egnp.png".encode())
RUN = "run \x1b[31m\nerror: $x$"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures") / "of <b> $x$"
    generator = np.random.default_rng(0)
    for split, number in (("train", 3), ("validation", 1)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for file in range(number):
                image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(os.path.join(os.fsencode(root / split / name), FILES[file]), "PNG")
        (root / split / CLASSES[0] / "bad\x1b[2J\n.png").write_bytes(b"\x1b[31mno picture")
        (root / split / CLASSES[0] / "notes\x1b[2J\n.txt").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def call():
    """Runs a command, and asserts that nothing of what it says steers a terminal or pretends to be a line."""

    def call(*arguments, expected: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(map(str, arguments)))
        assert code == expected, err.getvalue()
        for text in (out.getvalue(), err.getvalue()):
            steering = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
            assert steering <= {"\n"}, text
            text.encode()
        assert not re.search("^error: (disk full|b.png)", out.getvalue() + err.getvalue(), re.MULTILINE)
        return out.getvalue()

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("runs") / RUN
    return untrained_run(folder, pictures, tuple(sorted(CLASSES)), stage_features=(4,)).folder


@pytest.mark.slow
def test_train(pictures, call, tmp_path):
    fields = {
        "data.name": "image_folder", "data.folder": pictures, "data.directory": tmp_path / "prepared",
        "data.image_size": 8, "model.name": "simple_cnn", "model.stage_features": "(4,)", "model.norm": "batch",
        "num_epochs": 1, "batch_size": 16, "average_decay": 0,
    }  # fmt: skip
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    call("train", "--config=googlenet_digits", f"--workdir={tmp_path / RUN}", *given)
    call("train", "--config=googlenet_digits", f"--workdir={tmp_path / RUN}", *given)


def rows_of(text: str) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(text)))
    for cell in (cell for row in rows for cell in row):
        number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
        assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
    return rows


def name_of(cell: str) -> str:
    return cell.removeprefix("'")


def test_data(pictures, call, tmp_path):
    flags = ["--folder", pictures, "--data-dir", tmp_path, "--image-size", 8, "--config.data.hold_out=0"]
    text = call("data", "image_folder", *flags, "--sheet", tmp_path / "sheet\n.png")
    assert printable("bad\x1b[2J\n.png") in text
    page = json.loads(call("data", "image_folder", *flags, "--json"))
    assert sorted(page["class_names"]) == sorted(CLASSES)


def test_evaluate(trained, call, tmp_path):
    files = [tmp_path / "confusion.csv", tmp_path / "predictions.csv"]
    flags = ["--per-class", "--confusion", files[0], "--predictions", files[1]]
    text = call("evaluate", trained, *flags)
    assert all(printable(name) in text for name in CLASSES)
    record = json.loads(call("evaluate", trained, "--per-class", "--json", "--confusion", tmp_path / "\n.svg"))
    assert [each["name"] for each in record[str(trained)]["per_class"]] == sorted(CLASSES)
    confusion, predictions = (rows_of(file.read_bytes().decode()) for file in files)
    assert list(map(name_of, confusion[0][1:])) == [name_of(row[0]) for row in confusion[1:]] == sorted(CLASSES)
    assert {name_of(row[1]) for row in predictions[1:]} == set(CLASSES)
    ElementTree.parse(tmp_path / "\n.svg")


def test_predict(trained, pictures, call):
    text = call("predict", trained, pictures / "train", "--top", 16, expected=1)
    assert len(text.splitlines()) == 1 + 3 * len(CLASSES)  # a header
    rows = rows_of(call("predict", trained, pictures / "train", "--csv", "--top", 16, expected=1))
    assert {name_of(row[2]) for row in rows[1:]} == set(map(printable, CLASSES))
    lines = call("predict", trained, pictures / "train", "--json", "--top", 16, expected=1).splitlines()
    names = {one["name"] for line in map(json.loads, lines) for one in line.get("classes", ())}
    assert names == set(CLASSES)
    call("predict", trained, pictures / "none\n\x1b[2J", expected=1)


def test_compare_and_inspect(trained, call, tmp_path):
    text = call("compare", trained, trained, "--per-class", "--images", 8, "--chart", tmp_path / "layers$.svg")
    assert all(printable(name) in text for name in CLASSES)
    rows_of(call("inspect", trained, "--format", "csv", "--diagram", tmp_path / "network.svg"))
    assert printable(RUN) in (tmp_path / "network.svg").read_text()


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_report(trained, call, tmp_path):
    other = tmp_path / "other\x1b"
    shutil.copytree(trained, other)
    for name, arguments in (("one\n", [trained]), ("two\x1b", [trained, other, "--quick"])):
        page = tmp_path / f"{name}.html"
        call("report", *arguments, "--output", page)
        source = page.read_text(encoding="utf-8")
        tags = Tags(source)
        assert not any("onerror" in attributes for _, attributes in tags.found)
        assert "\x1b" not in source
        if name == "one\n":
            assert "<img src=x onerror" in tags.text
            assert "{{7*7}}" in tags.text
    found = findings.examine(trained)
    text = write_report(trained, tmp_path / "md", style="markdown", findings={trained: found}).read_text()
    assert "<img" not in text
    assert "\x1b" not in text


def test_runs(trained, call):
    folder = trained.parent
    text = call("runs", folder)
    assert printable(RUN) in text
    rows = rows_of(call("runs", folder, "--csv"))
    assert printable(RUN) in {name_of(row[0]) for row in rows}
    assert RUN in {row["run"] for row in json.loads(call("runs", folder, "--json"))}
    call("runs", folder, "--columns", "run,\x1b[2J\n", expected=2)
    (record,) = (record for record in list_runs(folder) if record.name == RUN)
    assert repr(record).startswith(f"Record({printable(RUN)}")
    assert repr(record).isprintable()


@pytest.mark.slow
def test_export(trained, call, tmp_path):
    for kind in ("stablehlo", "onnx"):
        file = tmp_path / f"net\x1b[2J\n.{kind}"
        call("export", trained, "--format", kind, "--output", file)
        assert json.loads(file.with_name(f"{file.name}.json").read_text())["class_names"] == sorted(CLASSES)


@pytest.mark.parametrize("command", ["evaluate", "predict", "report", "runs", "inspect", "export", "serve", "study"])
def test_what_is_given_by_hand_is_escaped(command, call):
    more = {"predict": ["x.png"], "export": ["--format", "onnx"]}.get(command, [])
    call(command, "no\x1b[2J\nerror: b.png/such", *more, expected=2)
    call(command, "x", "--no\x1b[2J\nsuch", expected=2)
