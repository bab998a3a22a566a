"""Text from outside at the edges: terminals, spreadsheets, JSON, charts."""

import ast
import csv
import io
import json
import logging
from pathlib import Path

import matplotlib.cbook
import pytest

import inception_jax
from inception_jax import process, text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("plain, caf\u00e9, \u65e5\u672c", "plain, caf\u00e9, \u65e5\u672c"),
        ("\x1b[31mred\n\r\t\x07", "\\x1b[31mred\\n\\r\\t\\x07"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("a\u202eb\u2028c\ufeff", "a\\u202eb\\u2028c\\ufeff"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(given, expected):
    assert text.printable(given) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_say_writes_whatever_the_encoding_of_the_stream(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    text.say("one \x1b\ntwo \u65e5 \xe9 \udcff", file=stream, flush=True)
    written = stream.buffer.getvalue().decode(encoding)
    assert written.startswith("one \\x1b\ntwo ")
    assert written.isascii() == (encoding == "ascii")
    assert written.endswith(" \\xff\n")


def test_complaints_are_one_line(capsys):
    text.complain("a\nb\x1b")
    assert capsys.readouterr() == ("", "a\\nb\\x1b\n")


def test_json_is_json_of_the_same_without_what_steers_a_terminal():
    value = {"\x1b\x7f\x9b": ["\u202e\U000e0041\udcff\n", 1.5, -0.0, True, None], "caf\u00e9": ("x",)}
    for indent in (None, 2):
        shown = text.json_text(value, indent)
        assert shown.replace("\n", "").isprintable()
        assert "caf\u00e9" in shown
        assert json.loads(shown) == {**value, "caf\u00e9": ["x"]}
    assert json.loads(text.json_text([float("nan"), {"a": float("-inf")}])) == [None, {"a": None}]


FORMULAS = ("=1+1", "+cmd|x", "-cmd", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "-", "=", "-1+1", "+", "-1e")
NUMBERS = ("-1", "-0.5", "+2", "1e-3", "-1.5E+10", ".5", "007")
OTHERS = ("", "cat", "a=b", "1-2", "x\ny", 'say "x"', "'quoted", "''", "'=1")


@pytest.mark.parametrize("name", [*FORMULAS, *NUMBERS, *OTHERS])
def test_cells_are_no_formulas_and_can_be_read_back(name):
    cell = text.csv_cell(name)
    assert cell.removeprefix("'") == name
    assert cell.startswith("'") == (name in FORMULAS or name.startswith("'"))


def test_a_line_of_csv_is_one_line():
    cells = ["=1\n", -0.5, None, float("nan"), 3, 'a"b,c', "\x1b", "-0.5"]
    (row,) = csv.reader([text.csv_line(cells)])
    assert row == ["'=1\\n", "-0.5", "", "nan", "3", 'a"b,c', "\\x1b", "-0.5"]


@pytest.mark.parametrize("name", ["$x$", "a $b", "\\$x\\$", "$$", "_hidden", "a\n$b$\x1b", "x" * 50])
def test_charts_have_no_formulas(name):
    label = text.chart_label(name, 40)
    shown, is_formula = label.replace(r"\$", "$"), matplotlib.cbook.is_math_text(label)
    assert not is_formula
    assert shown.strip() == text.shortened(text.printable(name), 40)
    assert not shown.startswith("_")
    assert len(shown) <= 41


def test_columns_of_wide_characters_are_aligned():
    lines = [text.aligned(name, 6) + "|" for name in ("abc", "\u65e5\u672c", "e\u0301")]
    assert lines == ["abc   |", "\u65e5\u672c  |", "e\u0301     |"]
    assert text.aligned("\u65e5", 4, left=False) == "  \u65e5"


def test_the_log_is_one_line_a_message(capsys):
    with process.log_to_stderr(prefix="process 1: "):
        logging.getLogger("inception_jax.x").warning("%s is left out", "a\x1b[2J\nerror: b")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("inception_jax.x").exception("here")
    first, second, *trace = capsys.readouterr().err.splitlines()
    assert first == "process 1: a\\x1b[2J\\nerror: b is left out"
    assert second == "process 1: here"
    assert trace[-1] == "ValueError: why"


def test_no_command_prints_past_it():
    """Every command says what it says through `text.say` and `text.complain`."""
    package = Path(inception_jax.__file__).parent
    for path in [*package.glob("commands/*.py"), package / "main.py"]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"], path


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds, expected):
    assert text.format_seconds(seconds) == expected
