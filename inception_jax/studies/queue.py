"""A queue of studies: forms that are trained and reported one after the other. Does not import JAX by itself.

Nothing is remembered but what the runs' folders hold. So the same queue continues after any end, also SIGKILL, and its
file may be changed in the meantime.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from inception_jax import files
from inception_jax.errors import LostError, UserError
from inception_jax.studies.plan import Plan, check_place, load_study, make_plan

if TYPE_CHECKING:
    from inception_jax.studies.results import StudyResults
    from inception_jax.studies.status import Status

logger = logging.getLogger(__name__)

FORM = "full"  # if none is given


@dataclasses.dataclass(frozen=True)
class QueueEntry:
    """A study in one form, as named on the command line or in a line of a queue file.

    Attributes:
      study: a study file, or the name of a shipped one.
      form: its size.
      only: shell patterns of variations; (): all of the form.
      epochs: of every run; None: as configured.
      seeds: of every variation; (): those of the form.
      fields: "--config.FIELD=VALUE", for all runs.
      place: where it is given, for messages, such as "weekend.txt, line 3"; "": on the command line.
    """

    study: str
    form: str = FORM
    only: tuple[str, ...] = ()
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()
    place: str = ""

    def plan(self, workdir: Path, found: Mapping[str, float] | None = None) -> Plan:
        """The runs; `found` as for `make_plan`.

        Args:
          workdir: folder of all studies.

        Raises:
          UserError: the study, its form, a pattern or a field is unknown, or a config is invalid.
        """
        with self.placed():
            name, study = load_study(self.study)
            if self.seeds and self.form in study.forms:
                form = dataclasses.replace(study.forms[self.form], seeds=self.seeds)
                study = dataclasses.replace(study, forms={**study.forms, self.form: form})
            return make_plan(
                name, study, self.form, workdir, only=self.only, epochs=self.epochs, fields=self.fields, found=found
            )

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Adds the place to the message of a UserError."""
        try:
            yield
        except UserError as error:
            if not self.place:
                raise
            raise UserError(f"{self.place}: {error}") from error

    @property
    def options(self) -> str:
        """What the name of the study and its form leave open, as on the command line."""
        words = [word for pattern in self.only for word in ("--only", pattern)]
        words += ["--epochs", str(self.epochs)] if self.epochs else []
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds else []
        return shlex.join([*words, *self.fields])


@dataclasses.dataclass(frozen=True)
class Queue:
    """Studies that are worked on one after the other.

    Attributes:
      workdir: folder of all studies.
      alone: one study by itself, whose folder has the status page; otherwise that is in `workdir`.
    """

    entries: tuple[QueueEntry, ...]
    workdir: Path
    alone: bool = False

    def plans(self) -> list[Plan]:
        """The plans of all entries.

        Raises:
          UserError: an entry has a mistake, or its run's folder, maybe that of another entry, has another config.
        """
        plans = [entry.plan(self.workdir) for entry in self.entries]
        first: dict[Path, tuple[QueueEntry, set[str]]] = {}
        for entry, plan in zip(self.entries, plans, strict=True):
            for planned in plan.runs:
                earlier, flags = first.setdefault(planned.folder, (entry, {*planned.flags}))
                if flags != {*planned.flags}:
                    differing = ", ".join(sorted(flags ^ {*planned.flags}))
                    places = " and ".join(each.place or each.study for each in (earlier, entry))
                    raise UserError(f"{places} would train {planned.folder} with different fields: {differing}")
                with entry.placed():
                    check_place(planned)
        return plans


class _LineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_entry_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a study is run, on the command line and in the lines of a queue file alike."""
    parser.add_argument("--form", metavar="NAME", help=f"form of the study (default: {FORM})")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="variations to train, shell patterns; can be repeated"
    )
    parser.add_argument("--epochs", type=_positive, metavar="N", help="epochs of each run")
    parser.add_argument("--seeds", type=_seeds, metavar="N,N", help="seeds of each variation (default: the form's)")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers) or len({*map(int, numbers)}) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of distinct numbers, such as 0,1,2")
    return tuple(map(int, numbers))


def make_entry(study: str, given: argparse.Namespace, fields: Iterable[str], place: str = "") -> QueueEntry:
    """The entry for a study and the flags of `add_entry_flags`."""
    return QueueEntry(
        study, given.form or FORM, tuple(given.only or ()), given.epochs, given.seeds or (), tuple(fields), place
    )


def read_entries(path: Path, defaults: argparse.Namespace, fields: Sequence[str] = ()) -> tuple[QueueEntry, ...]:
    """Reads a queue file: in each line a study and its flags as on the command line; "#" begins a comment.

    Args:
      defaults: flags of `add_entry_flags`, for the lines that do not set them.
      fields: "--config.FIELD=VALUE" for all lines, before their own.

    Raises:
      UserError: the file cannot be read or has no entry, or a line has a mistake.
    """
    try:
        lines = files.regular_file(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the queue file {path}: {reason}") from error
    parser = _LineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("study")
    add_entry_flags(parser)
    entries = []
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            given, own = parser.parse_known_args(words)
        except ValueError as error:  # quotes that do not close, or a UserError
            raise UserError(f"{place}: {error}") from error
        for name in ("form", "only", "epochs", "seeds"):
            setattr(given, name, getattr(given, name) or getattr(defaults, name))
        entries.append(make_entry(given.study, given, [*fields, *own], place))
    if not entries:
        raise UserError(f"the queue file {path} contains no study")
    return tuple(entries)


def work_through(
    queue: Queue,
    *,
    jobs: int = 1,
    seconds: float | None = None,
    gpus: Sequence[str] = (),
    reported: Callable[["StudyResults", Path], None] = lambda table, page: None,
) -> "Status":
    """Trains what is missing and writes the reports, one study after the other, and meanwhile the status page.

    A run that fails, or a study, does not keep the next ones from being trained.

    Args:
      jobs: number of runs at the same time.
      seconds: time after which the current runs are stopped and saved, and no more are started.
      gpus: their numbers or names, see `runner.train`.
      reported: called with the results of every study, and its page.

    Returns:
      How everything stands.

    Raises:
      UserError: an entry has a mistake, a folder holds a run with another config, or another process works there.
      WriteError: nothing can be written, as the disk is full.
    """
    from inception_jax.studies import runner
    from inception_jax.studies.status import Status

    plans = queue.plans()
    until = None if seconds is None else time.monotonic() + seconds
    folder = plans[0].folder if queue.alone else queue.workdir
    what = _study_lock(folder) if queue.alone else (folder, "the queue's folder", "is running a queue of studies")
    with files.held(*what):
        status = Status(folder, [entry.options for entry in queue.entries], plans)
        train = functools.partial(runner.train, jobs=jobs, gpus=gpus, tick=status.tick)
        with status.kept():
            for number in range(len(plans)):
                left = None if until is None else max(until - time.monotonic(), 0.0)
                if number and left == 0:
                    break
                if not queue.alone:
                    logger.info("study %d of %d: %s", number + 1, len(plans), status.items[number].name)
                with _failure_kept(status, number, alone=queue.alone):
                    lock = contextlib.nullcontext() if queue.alone else files.held(*_study_lock(plans[number].folder))
                    with lock:
                        reported(*_work(queue, number, status, train, left))
    return status


def _study_lock(folder: Path) -> tuple[Path, str, str]:
    return folder, "the study's folder", "is running the study"


@contextlib.contextmanager
def _failure_kept(status: "Status", number: int, *, alone: bool) -> Iterator[None]:
    """Keeps what went wrong with a study as a whole, so that the next one begins; there is none if it is `alone`."""
    try:
        yield
    except Exception as error:
        if alone or files.no_room(error.__cause__ or error):
            raise
        if not isinstance(error, UserError):  # a mistake in the package: where, is worth knowing
            logger.exception("%s", status.items[number].name)
        status.fail(number, str(error) or type(error).__name__)
    status.enter(number, "ended")


def _work(
    queue: Queue, number: int, status: "Status", train: Callable[..., dict[Path, str]], seconds: float | None
) -> tuple["StudyResults", Path]:
    """Trains, measures and reports a study; returns the results and the page."""
    from inception_jax.studies import extras, report, results, runner

    started = time.monotonic()
    entry, plan = queue.entries[number], status.items[number].plan
    status.enter(number, "training")
    failures = train(plan.runs, seconds=seconds)
    table = results.read_table(plan)
    search = plan.study.search
    if search and search.finer:
        # The second round depends on the results of the first.
        first = {name: table.estimate(name, search.measure) for name in table.results}
        found = {name: estimate.mean for name, estimate in first.items() if estimate.values}
        plan = status.items[number].plan = entry.plan(queue.workdir, found)
        left = None if seconds is None else max(seconds - (time.monotonic() - started), 0.0)
        failures |= train(plan.runs, seconds=left)
        table = results.read_table(plan)
    status.enter(number, "measuring", failures)
    if queue.alone:
        failures |= extras.measure_all(table)
    else:  # JAX would keep a GPU's memory, which the runs of the next study need
        try:
            failures |= runner.apart(extras.measure_all, table, tick=status.write)
        except LostError as error:  # the report has what was measured before
            status.fail(number, f"measuring after training failed: {error}")
    status.enter(number, "reporting", failures)
    table = results.read_table(plan)  # including the new measurements
    status.items[number].complete = all(
        result.state == "complete" for found in table.results.values() for result in found
    )
    return table, report.write_report(table, failures)
