"""The output of a run while it trains."""

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from inception_jax import process
from inception_jax.text import format_seconds

FIRST_SECONDS = 2.0  # until the first progress message, which estimates the run's duration
EPOCHS = logging.getLogger(
    f"{__name__}.epochs"
)  # for the run's log file: the lines of epochs, which are printed anyway
EPOCHS.setLevel(logging.INFO)
EPOCHS.propagate = False
BAR_SECONDS = 1.0  # between two updates of the bar, each of which waits for the device
BAR = "{desc} |{bar:20}| {percentage:3.0f} %{postfix}"


class Console:
    """Shows a run's progress: a bar on a terminal, lines otherwise, and a line for every evaluated epoch.

    In a notebook it is a bar with the latest epochs and the curves below it, see `notebook.Bar`.

    Args:
      total_steps: of the whole run.
      steps_per_epoch: updates per epoch.
      batch_size: examples per update, for the throughput.
      first_step: where this session starts.
      mode: "bar", "lines", or "auto": a bar on a terminal and in a notebook.
      every_seconds: interval between two lines.
      stream: where to write; by default the notebook's output, elsewhere standard error.
      active: False shows nothing.

    Attributes:
      metrics: names of the metrics that are shown of each split.
    """

    metrics: tuple[str, ...] = ("loss", "top1")

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
        self._bar = self._notebook_bar = None
        self._resources = contextlib.ExitStack()
        if active and mode != "lines" and stream is None and process.in_notebook():
            from inception_jax.train import notebook  # not earlier, since Matplotlib takes a while to import

            self._bar = self._notebook_bar = notebook.Bar(total=total_steps, initial=first_step, bar_format=BAR)
            self._resources.callback(self._bar.close)
        elif active and (mode == "bar" or (mode == "auto" and self._stream.isatty())):
            from tqdm.contrib.logging import logging_redirect_tqdm  # not in a notebook, where it warns

            self._bar = tqdm(
                total=total_steps, initial=first_step, file=self._stream, dynamic_ncols=True, bar_format=BAR
            )
            self._resources.callback(self._bar.close)
            # Print other log messages of the package above the bar, not inside it.
            self._resources.enter_context(logging_redirect_tqdm([logging.getLogger("inception_jax")]))
        self._every_seconds = BAR_SECONDS if self._bar is not None else every_seconds
        self._wait = min(FIRST_SECONDS, self._every_seconds)
        self._start: tuple[float, int] | None = None  # time and step after the first step, which compiled
        self._last = (time.monotonic(), first_step)  # at the last update or epoch

    def due(self, step: int) -> bool:
        """Whether it is time for `update`; call it after every step. Cheap: it does not access the device."""
        now = time.monotonic()
        if self._start is None:
            self._start = self._last = (now, step)
        return self._active and now - self._last[0] >= self._wait

    def leave_out(self, seconds: float) -> None:
        """Leaves the last seconds, in which no step was made, out of the speed and the time left."""
        self._last = (self._last[0] + seconds, self._last[1])
        self._start = self._start and (self._start[0] + seconds, self._start[1])

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Shows the state after `step`: `learning_rate`, and `metrics` of the training split in `row`."""
        now = time.monotonic()
        parts = [*self._shown(row, "train"), *_rate(row)]
        seconds, steps = now - self._last[0], step - self._last[1]
        if steps and seconds > 0:
            parts.append(f"{steps * self._batch_size / seconds:.0f} images/s")
        if self._start and step > self._start[1]:  # based on the time since then, including evaluations
            left = (now - self._start[0]) / (step - self._start[1]) * (self._total_steps - step)
            parts.append(f"{format_seconds(left)} left")
        self._last, self._wait = (now, step), self._every_seconds
        epoch = self._epoch(-(-step // self._steps_per_epoch))
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(epoch, refresh=False)
            self._bar.set_postfix_str("  ".join(parts))
        else:
            self._print("  ".join([epoch, f"step {step}/{self._total_steps}", *parts]))

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Shows an evaluated epoch: `learning_rate`, and `metrics` of every split in `row`."""
        parts = [f"{self._epoch(step // self._steps_per_epoch)} done"]
        for split in ("train", "validation", "test"):
            if values := self._shown(row, split):
                parts.append(" ".join([split, *values]))
        line = "  ".join([*parts, *_rate(row)])
        if self._notebook_bar is not None:
            self._notebook_bar.epoch(row, self.metrics)
        else:
            self._print(line)
        EPOCHS.info("%s", line)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(self._epoch(step // self._steps_per_epoch))
        self._last = (time.monotonic(), step)  # the throughput excludes the evaluation

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _shown(self, row: Mapping[str, float], split: str) -> list[str]:
        return [f"{name} {row[f'{split}_{name}']:.4f}" for name in self.metrics if f"{split}_{name}" in row]

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch}/{-(-self._total_steps // self._steps_per_epoch)}"

    def _print(self, line: str) -> None:
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        elif self._active:
            print(line, file=self._stream, flush=True)


class _Lasting:
    """A stream whose failure does not end the run: a full disk, a closed terminal, a reader that has exited."""

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


def _rate(row: Mapping[str, float]) -> list[str]:
    if "learning_rate" not in row:
        return []
    rate = row["learning_rate"]
    return [f"lr {rate:.4f}" if rate >= 1e-3 or rate == 0 else f"lr {rate:.2e}"]
