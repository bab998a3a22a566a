"""Starts two processes that differ in their folder, data or config, and shows how and how soon they exit.

Both should exit with code 2 within half a minute and print one line that says what differs. Nothing should remain of
the run's folder.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = """\
examples:
  python benchmarks/differing_processes.py --runs 5
  python benchmarks/differing_processes.py --runs 1 --kinds folder
"""
FIELDS = ("model.name=simple_cnn", "model.norm=batch", "model.stage_features=(4, 8)", "batch_size=16", "num_epochs=2")
LIMIT = 300  # seconds, after which a process that is still running is killed


def pictures(folder: Path, seed: int) -> Path:
    for number in range(64):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng((seed, number)).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def arguments(kind: str, folder: Path) -> list[list[str]]:
    """The arguments of each process."""
    if kind == "folder":
        return [[f"--workdir={folder}"], [f"--workdir={folder}-other"]]
    common = [f"--workdir={folder}"]
    if kind == "config":
        return [[*common, f"--config.schedule.learning_rate={rate}"] for rate in (0.1, 0.2)]
    data = ["data.name=image_folder", "data.image_size=16"]
    return [
        [*common, *(f"--config.{field}" for field in data), f"--config.data.folder={folder.parent / f'pictures{i}'}"]
        for i in range(2)
    ]


def start_two(kind: str, folder: Path) -> list[tuple[int, float, str]]:
    """Exit code, seconds and standard error of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started, running = time.monotonic(), []
    for index, own in enumerate(arguments(kind, folder)):
        command = [sys.executable, "-m", "inception_jax.main", "--config=googlenet_digits", *own]
        command += [f"--config.{field}" for field in FIELDS]
        command += [f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        output = folder.with_name(f"{folder.name}.{index}.log").open("w+")
        running.append((subprocess.Popen(command, env=environment, stdout=output, stderr=output), output))
    ended: dict[int, tuple[int, float, str]] = {}
    while len(ended) < 2:
        time.sleep(0.05)
        for index, (process, output) in enumerate(running):
            if time.monotonic() - started > LIMIT:
                process.kill()
            if index not in ended and process.poll() is not None:
                output.seek(0)
                ended[index] = process.returncode, time.monotonic() - started, output.read()
                output.close()
    return [ended[index] for index in range(2)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", choices=("folder", "config", "data"), default=["folder", "config", "data"]
    )
    options = parser.parse_args(argv)
    work = Path(tempfile.mkdtemp())
    try:
        for index in range(2):
            pictures(work / f"pictures{index}", index)
        print("| differ in | run | exit codes | seconds | say so in a line | folder left |")
        print("|---|---|---|---|---|---|")
        for kind in options.kinds:
            for run in range(options.runs):
                folder = work / f"{kind}{run}"
                ends = start_two(kind, folder)
                said = sum(len(re.findall("^error: the processes do not agree", end[2], re.M)) for end in ends)
                codes, seconds = (", ".join(str(end[0]) for end in ends), ", ".join(f"{end[1]:.1f}" for end in ends))
                print(f"| {kind} | {run + 1} | {codes} | {seconds} | {said} of 2 | {folder.exists()} |", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
