"""Time that a config takes to reach its target: mean and standard deviation over runs with different seeds.

Each run is the command, in a process and a folder of its own, one after the other; the first one compiles, and the
others find the programs in the cache. Accuracy is that of the last weights. Training is the seconds of steps only,
evaluation those of evaluations, both without compilation; wall is from the start of the command to its end.
Prints Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = """\
Run nothing else at the same time.

examples, in the repository's root:
  python benchmarks/time_to_accuracy.py
  python benchmarks/time_to_accuracy.py --runs 3 --workdir runs/faster --config.schedule.learning_rate=0.6
"""
COLUMNS = ("top-1", "epochs", "training, s", "evaluation, s", "wall, s")


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the --config.FIELD=VALUE flags for the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="googlenet_cifar10_fast", help="name or file (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=5, help="number of runs, with seeds 0, 1, ... (default: %(default)s)"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/time_to_accuracy"), help="(default: %(default)s)")
    options, fields = parser.parse_known_args(argv)
    wrong = [field for field in fields if not field.startswith("--config.")]
    if wrong:
        parser.error(f"unrecognized argument {wrong[0]}: fields have the form --config.FIELD=VALUE")
    return options, fields


def run(options: argparse.Namespace, fields: list[str], seed: int) -> tuple[list[float], str]:
    """The columns for a run, and why it ended."""
    folder = options.workdir / f"seed_{seed}"
    if folder.exists():
        raise SystemExit(f"error: {folder} exists: a resumed run cannot be timed; choose another --workdir")
    command = [sys.executable, "-m", "inception_jax.main", f"--config={options.config}", *fields]
    started = time.perf_counter()
    code = subprocess.run([*command, f"--config.seed={seed}", f"--workdir={folder}"]).returncode
    wall = time.perf_counter() - started
    if code:
        raise SystemExit(code)
    summary = json.loads((folder / "summary.json").read_text())
    split = next(split for split in ("test", "validation") if split in summary)
    times = [summary["training_seconds"], summary["evaluation_seconds"], wall]
    return [100 * summary[split]["top1"], summary["epochs"], *times], summary["stopped"]


def main(argv: list[str] | None = None) -> None:
    options, fields = parse_arguments(argv)
    print(f"| seed | {' | '.join(COLUMNS)} | ended by |\n|{' --- |' * (len(COLUMNS) + 2)}", flush=True)
    rows = []
    for seed in range(options.runs):
        row, stopped = run(options, fields, seed)
        rows.append(row)
        print(f"| {seed} | {' | '.join(f'{value:.2f}' for value in row)} | {stopped} |", flush=True)
    columns = list(zip(*rows, strict=True))
    print(f"| mean | {' | '.join(f'{statistics.mean(column):.2f}' for column in columns)} | |")
    if len(rows) > 1:
        print(f"| deviation | {' | '.join(f'{statistics.stdev(column):.2f}' for column in columns)} | |")


if __name__ == "__main__":
    main()
