"""Overhead of the training loop: its images/s relative to those of the bare jitted step.

The bare step is repeated on one batch on the device. The loop is the trainer's own, `inception_jax.fit` on
random images in memory, with evaluation and logging off. They take turns in one process: after some steps the loop is
paused where it would show its progress, and the same number of bare steps runs. Both augment, normalize and update as
configured; the config's data set is not read.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import inception_jax
from inception_jax import main, process
from inception_jax.distributed import sharding
from inception_jax.experiment import Experiment, Inputs
from inception_jax.train.console import Console

EXAMPLES = """\
Run nothing else at the same time.

examples, in the repository's root:
  python benchmarks/loop_overhead.py
  python benchmarks/loop_overhead.py --config googlenet_cifar10 --steps 10 --rounds 5 --config.batch_size=64
"""
SHAPE, NUM_CLASSES = (32, 32, 3), 10
CLASS_NAMES = tuple(map(str, range(NUM_CLASSES)))
SETTLING_STEPS = 12  # untimed steps per side after its pause: until the queue is full and memory is back to normal


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="googlenet_cifar10_quick", help="name or file (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps per side and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    options, fields = parser.parse_known_args(argv)
    options.config, *_ = main.parse_flags([f"--config={options.config}", *fields])
    return options


def bare_step(config: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[int], float]:
    """A function that makes a number of updates on one batch and returns images/s."""
    mesh = sharding.make_mesh(config.num_devices)
    inputs = Inputs(CLASS_NAMES, SHAPE, (0.5,) * 3, (0.25,) * 3)
    experiment = Experiment.of(config, inputs, len(images) // config.batch_size)
    step = jax.jit(experiment.train_step, donate_argnames="state", compiler_options=experiment.compiler_options)
    state = sharding.replicate(experiment.initial_state(), mesh)
    batch = sharding.split_batch((images[: config.batch_size], labels[: config.batch_size]), mesh)
    key = jax.random.key(1)

    def measure(number: int) -> float:
        nonlocal state
        state, loss = step(state, *batch, key)  # waits for earlier steps, and compiles the first time
        for _ in range(SETTLING_STEPS - 1):
            state, loss = step(state, *batch, key)
        loss.block_until_ready()
        started = time.perf_counter()
        for _ in range(number):
            state, loss = step(state, *batch, key)
        loss.block_until_ready()
        return number * config.batch_size / (time.perf_counter() - started)

    return measure


def interleaved(measure: Callable[[int], float], number: int, rounds: list[tuple[float, float]]) -> type[Console]:
    """A console that alternates the training loop with `measure`, and adds (bare, loop) images/s to `rounds`."""

    class TakingTurns(Console):
        begun = 0.0

        def due(self, step: int) -> bool:
            position = (step - 1) % (SETTLING_STEPS + number)
            if position == SETTLING_STEPS:
                self.begun = time.perf_counter()
            elif position == 0 and step > 1:
                loop = number * self._batch_size / (time.perf_counter() - self.begun)
                rounds.append((measure(number), loop))
            return False

    return TakingTurns


def benchmark(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    config = options.config
    config.num_epochs = 1
    config.profile = False
    config.evaluate.stop_at = 0.0
    config.checkpoint.every_steps = 0
    config.log.tensorboard = False
    config.log.progress = "lines"
    number = (1 + options.rounds * (SETTLING_STEPS + options.steps)) * config.batch_size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (number, *SHAPE), np.uint8)
    labels = random.integers(0, NUM_CLASSES, number, np.int32)
    rounds: list[tuple[float, float]] = []
    measure = bare_step(config, images, labels)
    measure(1)
    console = interleaved(measure, options.steps, rounds)
    with tempfile.TemporaryDirectory() as folder:
        inception_jax.fit(config, (images, labels), class_names=CLASS_NAMES, workdir=folder, console=console)
    print("| round | bare step, images/s | loop | loop / bare step |\n| --- | --- | --- | --- |")
    for index, (bare, loop) in enumerate(rounds, 1):
        print(f"| {index} | {bare:,.0f} | {loop:,.0f} | {loop / bare:.3f} |")
    ratios = [loop / bare for bare, loop in rounds]
    low, _, high = statistics.quantiles(ratios, n=4)
    bare, loop = (statistics.median(side) for side in zip(*rounds, strict=True))
    print(f"\nmedians: bare {bare:,.0f}, loop {loop:,.0f} images/s, ratio {statistics.median(ratios):.3f}", end=" ")
    print(f"(half of the rounds from {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    process.tune()
    benchmark()
