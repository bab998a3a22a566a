"""TensorBoard's event files, without TensorFlow."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files
from inception_jax.writers.protocol import RunWriter


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within this context, `import module` raises ImportError, unless it has already been imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyright: ignore[reportArgumentType] (documented: "import of ... halted")
    try:
        yield
    finally:
        del sys.modules[module]


# If PyTorch is installed, tensorboardX imports it for a type hint, which would double the startup time.
with _hidden("torch"):
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

FLUSH_SECONDS = 30.0  # time until TensorBoard sees new values


class TensorBoardWriter(RunWriter):
    """Event files in the run's folder, one for each time that the run is started.

    tensorboardX's SummaryWriter writes in a thread. If the disk is full, that thread ends, and a few events later the
    run would wait for it forever. So the events are written here.

    Raises:
      WriteError: the disk is full, or permission is denied.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: EventsWriter | None = None
        self._flushed = -FLUSH_SECONDS

    def resume(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        self.close()
        with _writing():
            self._file = EventsWriter(str(self._folder / "events"))
        # TensorBoard discards what earlier files have from this step on.
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows `train_loss` as `train/loss`, so that the curves of a split are together; `epoch` is not a curve."""
        for name, value in scalars.items():
            if name != "epoch":
                self._write(Event(step=step, summary=summary.scalar(_tag(name), value)))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._write(Event(step=step, summary=summary.text(name, text)))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, batch in images.items():
            for number, image in enumerate(batch):
                tag = name if len(batch) == 1 else f"{name}/{number}"
                self._write(Event(step=step, summary=summary.image(tag, image, dataformats="HWC")))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        shown = {name: value if isinstance(value, int | float | str) else str(value) for name, value in hparams.items()}
        # The watched metric is shown beside them; its value is that of the curve.
        experiment, start, _ = summary.hparams(shown, {_tag(str(hparams.get("evaluate.watch"))): 0.0})
        for part in (experiment, start):
            self._write(Event(summary=part))

    def write_file(self, path: Path) -> None:
        """Does nothing: TensorBoard does not keep files."""

    def _write(self, event: Event) -> None:
        if self._file is None:  # nothing is written before `resume`
            return
        event.wall_time = time.time()
        with _writing():
            self._file.write_event(event)
            if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def flush(self) -> None:
        """Does nothing: the file is flushed by time, since evaluations may be many a second."""

    def close(self) -> None:
        if self._file is not None:
            with _writing():
                self._file.close()
            self._file = None


def _tag(name: str) -> str:
    return re.sub("^(train|validation|test)_", r"\1/", name)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turns OSError, such as for a full disk, into a one-line WriteError."""
    try:
        yield
    except OSError as error:
        raise files.cannot_write("TensorBoard's events", error) from error
