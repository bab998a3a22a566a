"""The only writer of metrics: metrics.csv, TensorBoard events, and the console's progress."""

import contextlib
import csv
import io
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from inception_jax import files
from inception_jax.errors import UserError, WriteError


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within it, `import module` raises ImportError, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyright: ignore[reportArgumentType] (documented: "import of ... halted")
    try:
        yield
    finally:
        del sys.modules[module]


# Where PyTorch is installed, tensorboardX imports it for a type hint, which would double the time of a start.
with _hidden("torch"):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

logger = logging.getLogger(__name__)

FIRST_SECONDS = 2.0  # until the first sign of progress, which says how long the run will take
BAR_SECONDS = 1.0  # between two states of the bar; each waits for the device once
FLUSH_SECONDS = 30.0  # after which TensorBoard sees what is new

Row = dict[str, float | int]
_COLUMN = re.compile(r"[\w./-]+")  # what a column may be called: splits and metrics, and a network's own heads


class MetricWriter:
    """Writes a run's metrics: wide rows to `metrics.csv`, one an evaluated epoch, and scalars for TensorBoard.

    A file that is damaged is set aside and named in a warning; its rows that are whole are taken over.

    Raises:
      WriteError: there is no room left, or no permission.

    Args:
      folder: the run's.
      resume_step: the step that the run goes on from: what was written after it is cut off. 0 or None: a new run.
      tensorboard: whether to write event files.
      active: False writes nothing: of several processes, only the first writes.
    """

    def __init__(
        self, folder: str | Path, *, resume_step: int | None = None, tensorboard: bool = True, active: bool = True
    ):
        self._active = active
        self._path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._events = None
        if not active:
            return
        last_kept = resume_step or 0
        with _writing(self._path):
            rows = [row for row in self._read() if int(row["step"]) <= last_kept]
            self._columns = list(rows[0]) if rows else []
            self._rewrite(rows)
            if tensorboard:
                self._events = _Events(folder, purge_step=last_kept + 1)

    def write(self, step: int, row: Mapping[str, float | int]) -> None:
        """Appends a row; a metric that is new in it becomes a further column, empty in the rows above."""
        if not self._active:
            return
        with _writing(self._path):
            self._write(step, row)

    def _write(self, step: int, row: Mapping[str, float | int]) -> None:
        full = {"step": int(step)} | {name: _number(value) for name, value in row.items() if name != "step"}
        new = [name for name in full if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._rewrite(rows)
        # One write of one whole line: a run killed in the middle of it leaves a line without its end, not a wrong one.
        with self._path.open("a", newline="") as file:
            file.write(_csv_lines(self._columns, [full]))
            file.flush()
            os.fsync(file.fileno())  # the checkpoint that comes next counts on it
        self.scalars(step, {name: value for name, value in full.items() if name not in ("step", "epoch")})

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds scalars for TensorBoard alone; `train_loss` is shown as `train/loss`."""
        if self._events:
            with _writing("TensorBoard's events"):
                for name, value in values.items():
                    self._events.add(re.sub("^(train|validation|test)_", r"\1/", name), _number(value), step)

    def close(self) -> None:
        if self._events:
            with _writing("TensorBoard's events"):
                self._events.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _read(self) -> list[dict[str, str]]:
        """The rows; a damaged file is set aside, since a run whose checkpoints are whole goes on without it."""
        rows, problem = _read_text(self._path)
        if problem:
            aside = files.set_aside(self._path)
            logger.warning(
                "%s is damaged: %s. It is kept as %s; %d whole row(s) of it are taken over",
                self._path, problem, aside.name, len(rows),
            )  # fmt: skip
        return rows

    def _rewrite(self, rows: Iterable[Mapping]) -> None:
        """Replaces the whole file at once, so that no moment is without it."""
        header = dict(zip(self._columns, self._columns, strict=True))
        files.write_text(self._path, _csv_lines(self._columns, [header, *rows] if header else []))


class _Events:
    """A file of TensorBoard's events.

    tensorboardX's SummaryWriter leaves the writing to a thread. Where the disk is full that thread ends, and a few
    events later the run would wait for it for ever.
    """

    def __init__(self, folder: str | Path, purge_step: int):
        self._file = EventsWriter(str(Path(folder) / "events"))
        self._flushed = -FLUSH_SECONDS
        # TensorBoard forgets what earlier files have from this step on.
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _writing(what: Path | str) -> Iterator[None]:
    """A disk without room is said in one line."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {what}: {error.strerror or error}") from error


def read_metrics(path: str | Path) -> list[Row]:
    """The rows of a metrics.csv, none if there is no such file; an empty cell has no key.

    Raises:
      UserError: the file is no table of numbers with a column `step`.
    """
    rows, problem = read_whole_rows(path)
    if problem:
        raise UserError(f"{path} is damaged: {problem}")
    return rows


def read_whole_rows(path: str | Path) -> tuple[list[Row], str]:
    """As `read_metrics`, of a file that may be damaged: the rows that are whole, and what is wrong; "": nothing."""
    texts, problem = _read_text(Path(path))
    return [
        {name: int(cell) if name == "step" else float(cell) for name, cell in row.items() if cell} for row in texts
    ], problem


def _read_text(path: Path) -> tuple[list[dict[str, str]], str]:
    """The whole rows as they are written, and what is wrong with the file.

    A last line without its end was cut short by a kill, which is no damage: it counts as not there.
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
        return [], "its first line does not name columns, step among them"
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
    """The cells of a line; none if it is no text."""
    try:
        return next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _is_number(cell: str, column: str) -> bool:
    """Whether a cell is empty or holds a number as it is written here: a step, or a float."""
    pattern = r"\d{1,18}" if column == "step" else r"-?\d{1,18}(\.\d{1,30})?([eE][+-]?\d{1,3})?|-?inf|nan"
    return not cell or re.fullmatch(pattern, cell, re.ASCII) is not None


def _csv_lines(columns: list[str], rows: Iterable[Mapping]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)  # floats by repr: exact
    return text.getvalue()


def _number(value) -> float | int:
    return value if isinstance(value, int) else float(value)


class Progress:
    """Shows how far a run is: a bar on a terminal, lines elsewhere, and a line for every evaluated epoch.

    Args:
      total_steps: of the whole run.
      steps_per_epoch: updates.
      batch_size: examples per update, for the throughput.
      first_step: where this session goes on.
      mode: "bar", "lines", or "auto": a bar if `stream` is a terminal.
      every_seconds: between two lines.
      stream: where to write; by default the standard error output.
      active: False shows nothing.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        batch_size: int,
        first_step: int = 0,
        mode: str = "auto",
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        active: bool = True,
    ):
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._stream: Any = _Lasting(stream or sys.stderr)
        self._active = active
        self._bar = None
        self._resources = contextlib.ExitStack()
        if active and (mode == "bar" or (mode == "auto" and self._stream.isatty())):
            self._bar = tqdm(
                total=total_steps,
                initial=first_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} |{bar:20}| {percentage:3.0f} %{postfix}",
            )
            self._resources.callback(self._bar.close)
            # Other lines of the package appear above the bar, not inside it.
            self._resources.enter_context(logging_redirect_tqdm([logging.getLogger("inception_jax")]))
        self._every_seconds = BAR_SECONDS if self._bar is not None else every_seconds
        self._wait = min(FIRST_SECONDS, self._every_seconds)
        self._start: tuple[float, int] | None = None  # seconds and step after the first step, which compiled
        self._last = (time.monotonic(), first_step)  # at the last update or epoch

    def due(self, step: int) -> bool:
        """Whether it is time for `update`; call it after every step. Cheap: it asks nothing of the device."""
        now = time.monotonic()
        if self._start is None:
            self._start = self._last = (now, step)
        return self._active and now - self._last[0] >= self._wait

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Shows the state after `step`: `learning_rate`, `train_loss` and `train_top1` of `row`."""
        now = time.monotonic()
        parts = [*_metrics(row, "train"), *_rate(row)]
        seconds, steps = now - self._last[0], step - self._last[1]
        if steps and seconds > 0:
            parts.append(f"{steps * self._batch_size / seconds:.0f} images/s")
        if self._start and step > self._start[1]:  # by the time since then, evaluations included
            left = (now - self._start[0]) / (step - self._start[1]) * (self._total_steps - step)
            parts.append(f"left {format_seconds(left)}")
        self._last, self._wait = (now, step), self._every_seconds
        epoch = self._epoch(-(-step // self._steps_per_epoch))
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(epoch, refresh=False)
            self._bar.set_postfix_str("  ".join(parts))
        else:
            self._print("  ".join([epoch, f"step {step}/{self._total_steps}", *parts]))

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Shows an evaluated epoch: `learning_rate`, and `<split>_loss` and `<split>_top1` of every split in `row`."""
        parts = [f"{self._epoch(step // self._steps_per_epoch)} done"]
        for split in ("train", "validation", "test"):
            if values := _metrics(row, split):
                parts.append(" ".join([split, *values]))
        self._print("  ".join([*parts, *_rate(row)]))
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(self._epoch(step // self._steps_per_epoch))
        self._last = (time.monotonic(), step)  # the throughput does not count the evaluation

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch}/{-(-self._total_steps // self._steps_per_epoch)}"

    def _print(self, line: str) -> None:
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        elif self._active:
            print(line, file=self._stream, flush=True)


class _Lasting:
    """A stream that a run outlives: a full disk, a terminal that is gone, or a reader that has ended is no failure."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _metrics(row: Mapping[str, float], split: str) -> list[str]:
    return [f"{name} {row[f'{split}_{name}']:.4f}" for name in ("loss", "top1") if f"{split}_{name}" in row]


def _rate(row: Mapping[str, float]) -> list[str]:
    if "learning_rate" not in row:
        return []
    rate = row["learning_rate"]
    return [f"rate {rate:.4f}" if rate >= 1e-3 or rate == 0 else f"rate {rate:.2e}"]


def format_seconds(seconds: float) -> str:
    """A duration in words: "45 s", "1 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
