"""`inception-jax study`: trains the variations of a study, compares them with published results, and reports."""

import argparse
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax.commands import flags
from inception_jax.errors import UserError
from inception_jax.files import held
from inception_jax.process import TERMINATED, Terminated, log_to_stderr, terminable
from inception_jax.text import columns, complain, printable, say

if TYPE_CHECKING:
    from inception_jax.studies.plan import Plan

EXAMPLES = """\
examples:
  inception-jax study
  inception-jax study residuals --form cpu --dry-run
  inception-jax study residuals --form cpu
  inception-jax study patience --only 'patience_1*' --budget 30minutes
  inception-jax study my_study.py --budget 5epochs --config.data.archives=DIR

Runs that are complete are kept, those that were interrupted go on: the same command continues. Each run is a folder of
its own below --workdir, and the report beside them is written anew each time: report.html, report.tex, results.json.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "study",
        run,
        help="train the variations of a study and report them beside published numbers",
        description="Trains what a study is missing and writes its report. Without FILE: the studies that there are.",
        examples=EXAMPLES,
        takes_fields=True,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a study file, or the name of a shipped one")
    parser.add_argument("--form", default="full", metavar="NAME", help="in which size (default: full)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="variations, patterns; repeatable")
    parser.add_argument("--budget", metavar="N", help="5epochs: train each so long; 30minutes: stop after this time")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: one for each GPU, else 1)")
    parser.add_argument(
        "--workdir", type=flags.path, default=Path("runs/studies"), metavar="DIR", help="(default: runs/studies)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs, the time and the disk that they take")


def run(args: argparse.Namespace) -> int:
    """Trains and reports; returns 1 if a run failed, 75 if some are left because of the time limit or SIGTERM."""
    from inception_jax.studies.plan import load_study, make_plan, shipped_studies

    if not args.file:
        shipped = {name: load_study(str(path))[1] for name, path in shipped_studies().items()}
        rows = [(name, f"{study.title} (forms: {', '.join(study.forms)})") for name, study in shipped.items()]
        say("\n".join(columns(rows)))
        return 0
    flags.check_at_least_1(args, "jobs")
    epochs, seconds = _budget(args.budget)
    name, study = load_study(args.file)

    def plan(found=None) -> "Plan":
        return make_plan(
            name, study, args.form, args.workdir, only=args.only, epochs=epochs, fields=args.fields, found=found
        )

    with terminable():
        try:
            if args.dry_run:
                _dry_run(plan())
                return 0
            gpus = _gpus()
            with log_to_stderr(), held(plan().folder, "the study's folder", "works on the study"):
                return _train_and_report(plan, jobs=args.jobs or len(gpus) or 1, seconds=seconds, gpus=gpus)
        except Terminated:  # the runs have saved their state
            complain("terminated: the same command goes on")
            return TERMINATED


def _train_and_report(plan, *, jobs: int, seconds: float | None, gpus: list[str]) -> int:
    from inception_jax.studies import extras, report, results, runner

    started = time.monotonic()
    planned = plan()
    failures = runner.train(planned.runs, jobs=jobs, seconds=seconds, gpus=gpus)
    table = results.read_table(planned)
    search = planned.study.search
    if search and search.finer:
        # The second round depends on the results of the first.
        first = {name: table.estimate(name, search.measure) for name in table.results}
        planned = plan({name: estimate.mean for name, estimate in first.items() if estimate.values})
        left = None if seconds is None else max(seconds - (time.monotonic() - started), 0.0)
        failures |= runner.train(planned.runs, jobs=jobs, seconds=left, gpus=gpus)
        table = results.read_table(planned)
    failures |= extras.measure_all(table)
    table = results.read_table(planned)  # including the new measurements
    page = report.write_report(table, failures)
    for verdict in table.verdicts():
        say(printable(f"{verdict.verdict:>10}: {verdict.claim.text}"))
    say(f"report: {page}")
    if failures:
        return 1
    states = {result.state for found in table.results.values() for result in found}
    return 0 if states == {"complete"} else TERMINATED


def _dry_run(plan: "Plan") -> None:
    """Prints each run and its progress; for the rest, the time and disk space estimated from measured steps."""
    from inception_jax.runs.folder import open_checkpoints, read_config
    from inception_jax.studies.plan import state_of
    from inception_jax.studies.runner import measure

    hours = gigabytes = 0.0
    for name in plan.variations:
        runs = plan.runs_of(name)
        missing = [planned for planned in runs if state_of(planned) != "complete"]
        line = f"{name:28} {len(runs)} seed(s), {len(runs) - len(missing)} complete"
        if missing:
            first, folder = measure(missing[0])
            try:
                config = read_config(folder / "config.json")
                with open_checkpoints(folder, config) as checkpoints:
                    step = checkpoints.latest_step()
                    if step is None:
                        raise UserError(f"{name}: nothing could be measured; {folder.with_suffix('.log')} says why")
                    progress = checkpoints.progress(step)
                    size = sum(path.stat().st_size for path in (folder / "checkpoints" / str(step)).rglob("*"))
                if not progress["training_seconds"] or not progress["training_images"]:
                    raise UserError("it is over after its first step")
                images = config.num_epochs * progress["steps_per_epoch"] * config.batch_size
                rate = progress["training_images"] / progress["training_seconds"]
                own = (first + images / rate) / 3600 * len(missing)
                kept = size * (config.checkpoint.keep_latest + config.checkpoint.keep_best) / 1e9 * len(missing)
                line += f"; {rate:,.0f} images/s, {own:.2f} h and {kept:.2f} GB to come"
                hours, gigabytes = hours + own, gigabytes + kept
                shutil.rmtree(folder.parent)
            except UserError as error:
                line += f"; not measured: {error}"
        say(printable(line), flush=True)
    say(f"all: {hours:.1f} hours without evaluation, one run after the other; {gigabytes:.2f} GB in {plan.folder}")


def _budget(text: str | None) -> tuple[int | None, float | None]:
    """Parses the budget: epochs, seconds."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(epochs?|minutes?)", text)
    if not found or not float(found[1]):
        raise UserError(f"--budget={text} is not allowed: write e.g. 5epochs or 30minutes")
    number = float(found[1])
    if found[2].startswith("minute"):
        return None, 60 * number
    if number != int(number):
        raise UserError(f"--budget={text} is not allowed: epochs are whole")
    return int(number), None


def _gpus() -> list[str]:
    """The GPUs' numbers, without asking JAX, which would allocate their memory."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [number for number in given.split(",") if number.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
