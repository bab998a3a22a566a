"""`inception-jax study`: trains the variations of studies, compares them with published results, and reports."""

import argparse
import itertools
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax.commands import flags
from inception_jax.errors import UserError
from inception_jax.process import TERMINATED, Terminated, log_to_stderr, terminable
from inception_jax.studies.plan import shipped_studies, state_of
from inception_jax.studies.queue import Queue, add_entry_flags, make_entry, read_entries, work_through
from inception_jax.text import columns, complain, printable, say

if TYPE_CHECKING:
    from inception_jax.studies.plan import Plan, PlannedRun
    from inception_jax.studies.results import StudyResults

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  inception-jax study
  inception-jax study residuals --form cpu --dry-run
  inception-jax study residuals --form cpu
  inception-jax study patience --only 'patience_1*' --budget 30minutes
  inception-jax study my_study.py --budget 5epochs --config.data.archives=DIR
  inception-jax study residuals aux_heads --form cpu
  inception-jax study residuals --form cpu --publish docs/results
  inception-jax study --queue weekend.txt --dry-run

The same command continues: complete runs are kept, and interrupted runs are resumed. Each run has its own folder below
--workdir, and the report beside them is rewritten each time: report.html, report.tex, results.json.

Several studies, or those in a queue file, run one after the other; if one fails, the next ones still run. A line of the
file has the arguments for one study: its name, --form, --only, --epochs, --seeds and fields. Arguments on the command
line apply to the lines that do not set them. queue.html shows the progress.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "study",
        run,
        help="train the variations of a study and compare them with published results",
        description="Trains the missing runs of studies and writes their reports. Without FILE, lists the studies.",
        examples=EXAMPLES,
        takes_fields=True,
    )
    name = parser.add_argument("file", metavar="FILE", nargs="*", help="study file, or name of a shipped study")
    flags.complete(name, lambda _: shipped_studies())
    parser.add_argument("--queue", type=flags.path, metavar="FILE", help="text file with one study per line")
    add_entry_flags(parser)
    parser.add_argument("--budget", metavar="N", help="5epochs: same as --epochs 5; 30minutes: stop after this time")
    parser.add_argument("--jobs", type=int, metavar="N", help="parallel runs (default: one per GPU, else 1)")
    parser.add_argument(
        "--workdir", type=flags.path, default=Path("runs/studies"), metavar="DIR", help="(default: runs/studies)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs, their time and disk space")
    parser.add_argument(
        "--publish", type=flags.path, metavar="DIR", help="train nothing; write what is there to DIR/STUDY-FORM.json"
    )


def run(args: argparse.Namespace) -> int:
    """Trains and reports; returns 1 if a run failed, 75 if some are left because of the time limit or SIGTERM."""
    if not args.file and not args.queue:
        _list_studies()
        return 0
    flags.check_at_least_1(args, "jobs")
    epochs, seconds = _budget(args.budget)
    if epochs and args.epochs:
        raise UserError("give either --epochs or --budget in epochs, not both")
    args.epochs = args.epochs or epochs
    queue = _queue(args)
    with terminable():
        try:
            if args.dry_run:
                with log_to_stderr():
                    _dry_run(queue)
                return 0
            if args.publish:
                _publish(queue, args.publish)
                return 0
            with log_to_stderr():
                return _train_and_report(queue, args.jobs, seconds)
        except Terminated:  # the runs have saved their state
            complain("terminated: the same command continues")
            return TERMINATED


def _list_studies() -> None:
    from inception_jax.studies.plan import load_study

    shipped = {name: load_study(str(path))[1] for name, path in shipped_studies().items()}
    rows = [(name, f"{study.title} (forms: {', '.join(study.forms)})") for name, study in shipped.items()]
    say("\n".join(columns(rows)))


def _queue(args: argparse.Namespace) -> Queue:
    if not args.queue:
        entries = tuple(make_entry(study, args, args.fields) for study in args.file)
        return Queue(entries, args.workdir, alone=len(entries) == 1)
    if args.file:
        raise UserError(f"give either studies or --queue, not both: {args.file[0]}")
    return Queue(read_entries(args.queue, args, args.fields), args.workdir)


def _train_and_report(queue: Queue, jobs: int | None, seconds: float | None) -> int:
    def reported(table: "StudyResults", page: Path) -> None:
        for verdict in table.verdicts():
            say(printable(f"{verdict.verdict:>10}: {verdict.claim.text}"))
        say(f"report: {page}", flush=True)

    gpus = _gpus()
    status = work_through(queue, jobs=jobs or len(gpus) or 1, seconds=seconds, gpus=gpus, reported=reported)
    for failure in status.failures:
        complain(f"failed: {failure}")
    if status.failures:
        return 1
    return 0 if status.is_complete else TERMINATED


def _publish(queue: Queue, folder: Path) -> None:
    from inception_jax.studies.numbers import publish
    from inception_jax.studies.results import read_table

    for entry, plan in zip(queue.entries, queue.plans(), strict=True):
        say(publish(read_table(plan), folder, entry.options))


def _dry_run(queue: Queue) -> None:
    """Prints each run and its progress; for the rest, the time and disk space estimated from measured steps."""
    hours = gigabytes = 0.0
    plans = queue.plans()
    new = _new_runs(plans)
    unmeasured = sum(not _is_complete(runs) for own in new for runs in own.values())
    numbers = itertools.count(1)
    for plan, own in zip(plans, new, strict=True):
        if not queue.alone:
            say(f"{plan.name}, form {plan.form_name}:")
        longest = (0.0, 0.0)
        for name, runs in own.items():
            if not _is_complete(runs):
                logger.info("measuring %s (%d of %d)", name, next(numbers), unmeasured)
            line, more_hours, more_gigabytes = _estimate(name, runs)
            hours, gigabytes = hours + more_hours, gigabytes + more_gigabytes
            longest = max(longest, (more_hours / len(runs), more_gigabytes / len(runs)))
            say(printable(line), flush=True)
        if number := plan.runs_to_come:
            more_hours, more_gigabytes = number * longest[0], number * longest[1]
            hours, gigabytes = hours + more_hours, gigabytes + more_gigabytes
            say(f"{number} finer runs follow from these: {more_hours:.2f} h and {more_gigabytes:.2f} GB")
    folder = plans[0].folder if queue.alone else queue.workdir
    say(f"all: {hours:.1f} hours without evaluation, one run after the other; {gigabytes:.2f} GB in {folder}")


def _new_runs(plans: "Sequence[Plan]") -> "list[dict[str, list[PlannedRun]]]":
    """The runs of each plan that no earlier plan has, by variation."""
    seen: set[Path] = set()
    found = []
    for plan in plans:
        own = {name: [run for run in plan.runs_of(name) if run.folder not in seen] for name in plan.variations}
        found.append({name: runs for name, runs in own.items() if runs})
        seen.update(run.folder for runs in own.values() for run in runs)
    return found


def _is_complete(runs: "Sequence[PlannedRun]") -> bool:
    return all(state_of(planned) == "complete" for planned in runs)


def _estimate(name: str, runs: "list[PlannedRun]") -> tuple[str, float, float]:
    """The line for a variation, and the hours and gigabytes that its missing runs take."""
    from inception_jax.runs.folder import open_checkpoints, read_config
    from inception_jax.studies.runner import measure

    missing = [planned for planned in runs if state_of(planned) != "complete"]
    line = f"{name:28} {len(runs)} seed(s), {len(runs) - len(missing)} complete"
    if not missing:
        return line, 0.0, 0.0
    first, folder = measure(missing[0])
    try:
        config = read_config(folder / "config.json")
        with open_checkpoints(folder, config) as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                raise UserError(f"{name}: nothing could be measured: see {folder.with_suffix('.log')}")
            progress = checkpoints.progress(step)
            size = sum(path.stat().st_size for path in (folder / "checkpoints" / str(step)).rglob("*"))
        if not progress["training_seconds"] or not progress["training_images"]:
            raise UserError("it ends after its first step")
        images = config.num_epochs * progress["steps_per_epoch"] * config.batch_size
        rate = progress["training_images"] / progress["training_seconds"]
        hours = (first + images / rate) / 3600 * len(missing)
        gigabytes = size * (config.checkpoint.keep_latest + config.checkpoint.keep_best) / 1e9 * len(missing)
        shutil.rmtree(folder.parent)
    except UserError as error:
        return f"{line}; not measured: {error}", 0.0, 0.0
    return f"{line}; {rate:,.0f} images/s, {hours:.2f} h and {gigabytes:.2f} GB remaining", hours, gigabytes


def _budget(text: str | None) -> tuple[int | None, float | None]:
    """Parses the budget: epochs, seconds."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(epochs?|minutes?)", text)
    if not found or not float(found[1]):
        raise UserError(f"--budget={text} is not allowed: it must be e.g. 5epochs or 30minutes")
    number = float(found[1])
    if found[2].startswith("minute"):
        return None, 60 * number
    if number != int(number):
        raise UserError(f"--budget={text} is not allowed: the number of epochs must be whole")
    return int(number), None


def _gpus() -> list[str]:
    """The GPUs' numbers, without asking JAX, which would allocate their memory."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [number for number in given.split(",") if number.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
