"""metrics.csv: a row per evaluated epoch."""

import contextlib
import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from inception_jax import files
from inception_jax.errors import UserError
from inception_jax.writers import Writer

logger = logging.getLogger(__name__)

Row = dict[str, float | int]
_COLUMN = re.compile(r"[\w./-]+")  # allowed column names: splits and metrics, and a network's own heads


class CsvWriter(Writer):
    """Writes wide rows to `metrics.csv` in a run's folder, each of which is permanent when the call returns.

    `resume` comes first. A damaged file is set aside with a warning, and its intact rows are kept.

    Raises:
      WriteError: the disk is full, or permission is denied.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []

    def resume(self, step: int) -> list[Row]:
        """Discards the rows after `step`, 0 for a new run, and returns the others."""
        with _writing(self._path):
            rows = [row for row in self._read() if int(row["step"]) <= step]
            self._columns = list(rows[0]) if rows else []
            self._rewrite(rows)
        return [_numbers(row) for row in rows]

    def write_scalars(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Appends a row; a new metric adds a column, which is empty in earlier rows."""
        with _writing(self._path):
            self._write(step, scalars)

    def _write(self, step: int, row: Mapping[str, float | int]) -> None:
        full = {"step": int(step)} | {name: _number(value) for name, value in row.items() if name != "step"}
        new = [name for name in full if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._rewrite(rows)
        # One write per line: a run killed in the middle of it leaves a line without its newline, not a wrong one.
        with self._path.open("a", newline="") as file:
            file.write(_csv_lines(self._columns, [full]))
            file.flush()
            os.fsync(file.fileno())  # the next checkpoint relies on it

    def _read(self) -> list[dict[str, str]]:
        """Reads the rows; a damaged file is set aside, since a run with intact checkpoints continues without it."""
        rows, problem = _read_text(self._path)
        if problem:
            aside = files.set_aside(self._path)
            logger.warning(
                "%s is damaged: %s. It is kept as %s; its %d intact row(s) are used",
                self._path, problem, aside.name, len(rows),
            )  # fmt: skip
        return rows

    def _rewrite(self, rows: Iterable[Mapping]) -> None:
        """Replaces the whole file atomically, so that it always exists."""
        header = dict(zip(self._columns, self._columns, strict=True))
        files.write_text(self._path, _csv_lines(self._columns, [header, *rows] if header else []))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns OSError, such as for a full disk, into a one-line WriteError."""
    try:
        yield
    except OSError as error:
        raise files.cannot_write(path, error) from error


def read_metrics(path: str | Path) -> list[Row]:
    """Reads the rows of a metrics.csv, none if there is no such file; an empty cell has no key.

    Raises:
      UserError: the file is not a table of numbers with a column `step`.
    """
    rows, problem = read_whole_rows(path)
    if problem:
        raise UserError(f"{path} is damaged: {problem}")
    return rows


def read_whole_rows(path: str | Path) -> tuple[list[Row], str]:
    """As `read_metrics`, for a file that may be damaged: the intact rows, and what is wrong ("" if nothing)."""
    texts, problem = _read_text(Path(path))
    return [_numbers(row) for row in texts], problem


def _numbers(row: Mapping[str, str]) -> Row:
    return {name: int(cell) if name == "step" else float(cell) for name, cell in row.items() if cell}


def _read_text(path: Path) -> tuple[list[dict[str, str]], str]:
    """The intact rows as they are written, and what is wrong with the file.

    A last line without its newline was cut short when the run was killed. It is ignored and does not count as damage.
    """
    if path.exists() and not path.is_file():
        return [], "it is not a file"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"it cannot be read: {error.strerror or error}"
    header, *lines = content[: content.rfind(b"\n") + 1].splitlines() or [b""]
    columns = _cells(header)
    named = "step" in columns and len(set(columns)) == len(columns) and all(map(_COLUMN.fullmatch, columns))
    if (header or lines) and not named:
        return [], "its first line does not name columns including step"
    rows, problem = [], ""
    for number, line in enumerate(lines, start=2):
        cells = _cells(line)
        row = dict(zip(columns, cells, strict=False))
        if len(cells) == len(columns) and row["step"] and all(_is_number(cell, name) for name, cell in row.items()):
            rows.append(row)
        elif line:
            problem = problem or f"line {number} does not have a step and a number for each of the header's columns"
    return rows, problem


def _cells(line: bytes) -> list[str]:
    """The cells of a line; none if it is not text."""
    try:
        return next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _is_number(cell: str, column: str) -> bool:
    """Whether a cell is empty or holds a number in the format written here: a step, or a float."""
    pattern = r"\d{1,18}" if column == "step" else r"-?\d{1,18}(\.\d{1,30})?([eE][+-]?\d{1,3})?|-?inf|nan"
    return not cell or re.fullmatch(pattern, cell, re.ASCII) is not None


def _csv_lines(columns: list[str], rows: Iterable[Mapping]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)  # floats by repr: exact
    return text.getvalue()


def _number(value) -> float | int:
    return value if isinstance(value, int) else float(value)
