"""Repeatedly kills a small training run at random times, and compares the result with an uninterrupted run.

Every run is started by its command, receives SIGKILL at a random time within the duration of an uninterrupted run, and
is restarted until it completes. Every array of its last checkpoint, its metrics and its summary must then be bitwise
equal to the uninterrupted run's, except for timings and the folder's name. With --signal TERM it must save each time,
report the step, exit with the corresponding code, and resume from exactly that step.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = """\
examples:
  python benchmarks/kill_runs.py --runs 50
  python benchmarks/kill_runs.py --runs 5 --kills 20 --signal TERM
"""
NOT_COMPARED = {  # timings, and what names the run's folder
    "images_per_second", "seconds", "training_seconds", "evaluation_seconds", "name", "command",
}  # fmt: skip
FIELDS = (
    "num_epochs=4", "batch_size=60", "average_decay=0.9", "model.name=simple_cnn", "model.norm=batch",
    "model.stage_features=(4, 8)", "data.augment.pad_and_crop=1", "schedule.name=plateau", "checkpoint.every_steps=2",
    "schedule.learning_rate=0.02", "log.every_seconds=0.0",
)  # fmt: skip


class Session:
    """One invocation of the command."""

    def __init__(self, folder: Path, fields: list[str]):
        command = [sys.executable, "-m", "inception_jax.main", "--config=googlenet_digits", f"--workdir={folder}"]
        self.folder = folder
        self.log = folder.with_suffix(".log")
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *(f"--config.{field}" for field in (*FIELDS, *fields))],
                stderr=output,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            )

    def end_after(self, seconds: float, number: signal.Signals) -> int | None:
        """The exit code if the run ended within `seconds`; None: it got the signal, and has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        self.process.send_signal(number)
        code = self.process.wait()
        return code if code == 0 else None  # a run may end before the signal arrives

    def text(self) -> str:
        return self.log.read_text()


def outcome(folder: Path) -> dict:
    """Everything that must be equal: digests of the last checkpoint's arrays, metrics and summary."""
    last = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())
    digest = json.loads((folder / "checkpoints" / str(last) / "digest" / "metadata").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = [{name: cell for name, cell in row.items() if name not in NOT_COMPARED} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    summary = {name: value for name, value in summary.items() if name not in NOT_COMPARED}
    return {"step": last, "arrays": digest["leaves"], "rows": rows, "summary": summary}


def kill_until_done(folder: Path, fields: list[str], seconds: float, number: signal.Signals, draw: random.Random):
    """Returns how many sessions were killed, how many of them while writing a checkpoint, and what went wrong."""
    kills, during_save, faults = 0, 0, []
    stopped_after = None
    while True:
        session = Session(folder, fields)
        code = session.end_after(draw.uniform(0, seconds), number)
        text = session.text()
        goes_on = re.search(r"continues after step (\d+) of", text)
        if goes_on:
            if stopped_after and int(goes_on[1]) != stopped_after:
                faults.append(f"stopped after step {stopped_after}, but continued after {goes_on[1]}")
            stopped_after = None  # a session that is stopped after its training names no step
        if code is not None:
            if code:
                faults.append(f"exit code {code}: {text.strip().splitlines()[-1:]}")
            return kills, during_save, faults
        kills += 1
        during_save += any((folder / "checkpoints").glob("*tmp*"))
        if number == signal.SIGTERM:
            # A process without output was still starting Python, and could not handle a signal yet.
            if session.process.returncode != os.EX_TEMPFAIL and (text or session.process.returncode != -number):
                faults.append(f"exit code {session.process.returncode} after SIGTERM: {text.strip().splitlines()[-1:]}")
            if said := re.search(r"stopped after step (\d+) of", text):
                stopped_after = int(said[1])


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all runs had the same result, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=int, default=1, help="minimum number of runs (default: %(default)s)")
    parser.add_argument(
        "--kills", type=int, default=0, help="minimum number of kills, over all runs (default: %(default)s)"
    )
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill_runs"), help="(default: %(default)s)")
    options, fields = parser.parse_known_args(argv)
    fields = [field.removeprefix("--config.") for field in fields]
    number = signal.Signals[f"SIG{options.signal}"]
    draw = random.Random(options.seed)
    shutil.rmtree(options.workdir, ignore_errors=True)
    options.workdir.mkdir(parents=True)

    seconds = 0.0
    for name in ("warm", "reference"):  # the first one compiles
        started = time.monotonic()
        session = Session(options.workdir / name, fields)
        if session.process.wait():
            print(session.text())
            return 1
        seconds = time.monotonic() - started
    expected = outcome(options.workdir / "reference")
    equal = runs = kills = during_save = 0
    while runs < options.runs or kills < options.kills:
        folder = options.workdir / str(runs)
        started = time.monotonic()
        killed, saving, faults = kill_until_done(folder, fields, seconds, number, draw)
        if not killed:  # moments are drawn from the shortest duration of a whole run
            seconds = min(seconds, time.monotonic() - started)
        if not faults:
            found = outcome(folder)
            faults = [
                f"{name} differs from that of the uninterrupted run"
                for name in expected
                if found[name] != expected[name]
            ]
        runs, kills, during_save, equal = runs + 1, kills + killed, during_save + saving, equal + (not faults)
        for fault in faults:
            print(f"run {folder}: {fault}", flush=True)
    print(
        f"{equal} of {runs} runs are bit-equal to an uninterrupted one, after {kills} SIG{options.signal} at "
        f"random times, {during_save} of them during a save"
    )
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
