"""The status page of a queue of studies: what is done, what is running, what is left, and how long it takes."""

import contextlib
import dataclasses
import logging
import os
import re
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.errors import UserError, WriteError
from inception_jax.runs.metrics_log import read_metrics
from inception_jax.runs.records import read_summary
from inception_jax.studies.plan import Plan, PlannedRun, state_of
from inception_jax.text import format_seconds
from inception_jax.trained import pages

logger = logging.getLogger(__name__)

PAGE, NUMBERS = "queue.html", "queue.json"
TAIL_BYTES = 8192  # of a run's log that are searched for its last progress line
UNITS = {"h": 3600, "min": 60, "s": 1}  # of `text.format_seconds`
SESSION = ("training", "measuring", "reporting")  # stages of the study in progress


@dataclasses.dataclass
class StudyStatus:
    """The status of a study in the queue.

    Attributes:
      options: what differs from its form, as on the command line.
      stage: "waiting", "training", "measuring", "reporting" or "ended".
      complete: whether all runs were complete and undamaged when the study ended.
      running: the runs in progress.
      failures: messages by run, or by "the study" if it failed as a whole.
    """

    options: str
    plan: Plan
    stage: str = "waiting"
    complete: bool = False
    running: Sequence[PlannedRun] = ()
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.plan.name}, form {self.plan.form_name}"

    @property
    def state(self) -> str:
        """The stage; instead of "ended" and for complete ones: "failed", "complete" or "incomplete"."""
        if self.stage in SESSION:
            return self.stage
        if self.failures:
            return "failed"
        if self.stage == "ended":
            return "complete" if self.complete else "incomplete"
        return "complete" if all(state_of(planned) == "complete" for planned in self.plan.runs) else "waiting"


class Status:
    """The status of a queue, in memory and as two files in its folder: a page for people, and its numbers as JSON.

    Args:
      folder: of the queue.
      options: of each study, for people.
      plans: of each study.
    """

    def __init__(self, folder: Path, options: Sequence[str], plans: Sequence[Plan]):
        self.folder = folder
        self.items = [StudyStatus(words, plan) for words, plan in zip(options, plans, strict=True)]
        self._now = 0
        self._state = "running"
        self._epochs: dict[Path, float] = {}
        self._warned = False

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Writes the status at the beginning and at the end, also if a signal or an error ends the block."""
        logger.info("status: %s", self.folder / PAGE)
        self.write()
        try:
            yield
        finally:
            for item in self.items:
                item.running = ()
                item.stage = "waiting" if item.stage in SESSION else item.stage
            ended = all(item.state in ("complete", "failed") and item.stage == "ended" for item in self.items)
            self._state = "finished" if ended else "stopped"
            self.write()

    @property
    def failures(self) -> list[str]:
        """One line for each failure."""
        return [f"{item.name}: {what}: {why}" for item in self.items for what, why in item.failures.items()]

    @property
    def is_complete(self) -> bool:
        return all(item.state == "complete" for item in self.items)

    def enter(self, number: int, stage: str, failures: Mapping[Path, str] | None = None) -> None:
        """Records that a study enters another stage, and the failures of its runs."""
        self._now, item = number, self.items[number]
        item.stage, item.running = stage, ()
        self._note(failures or {})
        self.write()

    def fail(self, number: int, why: str) -> None:
        """Records that a study failed as a whole."""
        item = self.items[number]
        item.failures = {**item.failures, "the study": why}

    def tick(self, running: Sequence[PlannedRun], failures: Mapping[Path, str]) -> None:
        """Records which runs of the current study are in progress, and which failed."""
        self.items[self._now].running = running
        self._note(failures)
        self.write()

    def _note(self, failures: Mapping[Path, str]) -> None:
        item = self.items[self._now]
        names = {planned.folder: run_name(planned) for planned in item.plan.runs}
        item.failures = {**item.failures, **{names[folder]: why for folder, why in failures.items()}}

    def write(self) -> None:
        """Writes both files. A failure is only a warning, since the runs matter more."""
        content = self.as_json()
        template = pages.environment().get_template("queue.html")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / NUMBERS, content)
            page = template.render(queue=content, duration=_duration, to_go=_to_go)
            files.write_text(self.folder / PAGE, page)
        except (OSError, WriteError) as error:
            if not self._warned:
                logger.warning("cannot write the status page: %s", error)
            self._warned = True

    def as_json(self) -> dict[str, Any]:
        """The content of the page. A run that several studies share is counted in the first of them."""
        seen: set[Path] = set()
        studies = []
        for item in self.items:
            studies.append(self._study(item, seen))
            seen.update(planned.folder for planned in item.plan.runs)
        totals = ("runs", "complete_runs", "seconds_done", "seconds_to_go", "runs_without_estimate")
        return {
            "state": self._state,
            "updated": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            **{name: sum(study[name] for study in studies) for name in totals},
            "failures": self.failures,
            "studies": studies,
        }

    def _study(self, item: StudyStatus, seen: Collection[Path]) -> dict[str, Any]:
        running = {planned.folder for planned in item.running}
        progress = {planned.folder: self._progress_of(planned, planned.folder in running) for planned in item.plan.runs}
        left = _seconds_left(item.plan.runs, progress)
        own = [planned.folder for planned in item.plan.runs if planned.folder not in seen]
        page = item.plan.folder / "report.html"
        return {
            "name": item.name,
            "options": item.options,
            "state": item.state,
            "runs": len(own),
            "complete_runs": sum(progress[folder].is_complete for folder in own),
            "seconds_done": sum(progress[folder].seconds for folder in own),
            "seconds_to_go": sum(left[folder] or 0.0 for folder in own),
            "runs_without_estimate": sum(left[folder] is None for folder in own),
            "report": os.path.relpath(page, self.folder) if page.is_file() else None,
            "now": [
                {
                    "run": run_name(planned),
                    "epoch": progress[planned.folder].epoch,
                    "epochs": progress[planned.folder].epochs,
                    "seconds_to_go": left[planned.folder],
                }
                for planned in item.running
            ],
            "failures": dict(item.failures),
        }

    def _progress_of(self, planned: PlannedRun, is_running: bool) -> "RunProgress":
        if planned.folder not in self._epochs:  # not every time, since it runs the config file
            self._epochs[planned.folder] = planned.load_config().num_epochs
        return read_run_progress(planned, self._epochs[planned.folder], is_running)


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run has come.

    Attributes:
      epochs: number of epochs of the whole run; if it is complete, how many it took, since it may have ended early.
      epoch: the last completed epoch, with a fraction while the run trains.
      seconds: duration up to the last evaluated epoch.
      seconds_left: the run's own estimate while it trains; None: there is none yet.
      pace: seconds per epoch; None: unknown.
    """

    epochs: float
    epoch: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None
    pace: float | None = None
    is_complete: bool = False


def read_run_progress(planned: PlannedRun, epochs: float, is_running: bool = False) -> RunProgress:
    """Reads how far a run has come from its files. Damaged files are ignored.

    Args:
      epochs: of the whole run.
      is_running: whether it is training now, so that its log is from this session.
    """
    summary, rows = None, []
    with contextlib.suppress(UserError):
        summary = read_summary(planned.folder)
        rows = read_metrics(planned.folder / "metrics.csv")
    if summary is not None:
        took, seconds = summary.get("epochs") or epochs, summary.get("seconds", 0.0)
        return RunProgress(took, took, seconds, 0.0, seconds / took if took else None, is_complete=True)
    last = rows[-1] if rows else {}
    epoch, seconds, left = last.get("epoch", 0.0), last.get("seconds", 0.0), None
    pace = seconds / epoch if epoch else None
    if is_running and (found := read_progress_line(planned)):
        share, left = found
        epoch = max(epoch, share * epochs)
    return RunProgress(epochs, epoch, seconds, left, pace)


def read_progress_line(planned: PlannedRun) -> tuple[float, float | None] | None:
    """The share of the steps that are done and the seconds left, from the last progress line in a run's log.

    Returns None if there is no such line yet, and None for the seconds if it has no estimate.
    """
    try:
        with planned.folder.with_suffix(".log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(log.tell() - TAIL_BYTES, 0))
            text = log.read().decode(errors="replace")
    except OSError:
        return None
    # As `train.console.Console` prints it: "epoch 2/4  step 30/80  ...  1 min 12 s left".
    found = re.findall(r"  step (\d+)/([1-9]\d*)  (?:.*  )?(.*)$", text, re.MULTILINE)
    if not found:
        return None
    step, steps, last = found[-1]
    parts = re.findall(r"(\d+) (h|min|s)\b", last) if last.endswith(" left") else []
    return int(step) / int(steps), sum(int(number) * UNITS[unit] for number, unit in parts) if parts else None


def _seconds_left(runs: Sequence[PlannedRun], progress: Mapping[Path, RunProgress]) -> dict[Path, float | None]:
    """The remaining seconds of each run, by its own pace, or else by that of its other seeds or of the study.

    None if no pace is known.
    """
    paces: dict[str, list[float]] = {}
    for planned in runs:
        pace = progress[planned.folder].pace
        if pace is not None:
            paces.setdefault(planned.variation, []).append(pace)
    means = {variation: statistics.fmean(found) for variation, found in paces.items()}
    overall = statistics.fmean(means.values()) if means else None
    left: dict[Path, float | None] = {}
    for planned in runs:
        run = progress[planned.folder]
        pace = means.get(planned.variation, overall) if run.pace is None else run.pace
        estimated = pace * max(run.epochs - run.epoch, 0.0) if pace is not None else None
        left[planned.folder] = estimated if run.seconds_left is None else run.seconds_left
    return left


def run_name(planned: PlannedRun) -> str:
    """A run's name within its study."""
    return f"{planned.variation}, seed {planned.seed}"


def _duration(seconds: float | None) -> str:
    return "not known yet" if seconds is None else format_seconds(seconds)


def _to_go(part: Mapping[str, Any]) -> str:
    """The time that a study or the queue still takes, in words."""
    seconds, unknown = part["seconds_to_go"], part["runs_without_estimate"]
    if not unknown:
        return format_seconds(seconds)
    return f"at least {format_seconds(seconds)}" if seconds else _duration(None)
