"""How training scales over devices and processes, and how well that is predicted.

Virtual devices share this machine's cores, so they cannot be faster: the result shows the cost of dividing the work.
With several processes, each has its own share of the cores. Their step time is predicted as that of processes that do
not communicate, plus the time that the compiled step's all-reduces take on their own. The first step's loss must not
depend on how the batch is split.
"""

import argparse
import collections
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

EXAMPLES = """\
examples:
  python benchmarks/scaling.py
  python benchmarks/scaling.py --model=resnet18 --batch=32 --rounds=5
"""
LOSS_TOLERANCE = 1e-4  # relative; for float32 sums in a different order


def all_reduces(program: str) -> list[list[tuple[int, ...]]]:
    """The shapes of the floating-point arrays in each all-reduce in a compiled program's text."""
    found = []
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        shapes = [tuple(map(int, filter(None, shape.split(",")))) for shape in re.findall(r"f\d+\[([\d,]*)\]", result)]
        if shapes:
            found.append(shapes)
    return found


def _replay(groups: list[list[tuple[int, ...]]], mesh):
    """A program of only these all-reduces, one after the other, and its argument."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import PartitionSpec

    from inception_jax.distributed import sharding

    def reduce(first):
        carried = first[0]
        for shapes in groups:
            # Distinct, and behind a barrier: otherwise XLA sums scalars instead.
            arrays = tuple(jnp.full(shape, carried + index) for index, shape in enumerate(shapes))
            arrays = jax.lax.optimization_barrier(arrays)
            arrays = jax.lax.optimization_barrier(jax.lax.psum(arrays, "data"))
            carried = 1e-6 * sum(array.ravel()[0] for array in arrays)
        return jnp.reshape(carried, 1)

    spread = PartitionSpec("data")
    program = jax.jit(jax.shard_map(reduce, mesh=mesh, in_specs=spread, out_specs=spread))
    first = sharding.split_batch(np.ones(len(mesh.local_devices), np.float32), mesh)
    return program.lower(first).compile(), first


def work(options: argparse.Namespace) -> None:
    """One process: measures its step, and prints the results as JSON."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from inception_jax import process, steps
    from inception_jax.distributed import multihost, sharding
    from inception_jax.models import create_model
    from inception_jax.steps.optimizers import make_optimizer
    from inception_jax.steps.state import create_state

    process.use_compilation_cache()
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // options.of
    os.sched_setaffinity(0, cores[options.index * share : (options.index + 1) * share])
    group = None
    if options.coordinator:
        group = multihost.Group(options.coordinator, options.of, options.index)
    with multihost.joined(group):
        mesh = sharding.make_mesh()
        everywhere = NamedSharding(mesh, PartitionSpec())
        model = create_model(options.model, num_classes=10, dropout_rate=0.0, stem="small_pooled", norm="batch")
        optimizer = make_optimizer("sgd", 0.01, momentum=0.9)
        shape = (options.image_size, options.image_size, 3)
        create = partial(create_state, model=model, optimizer=optimizer, image_shape=shape)
        key = jax.random.key(0)
        state = jax.jit(create, out_shardings=everywhere)(key)
        random = np.random.default_rng(0)  # for all processes together, to compare them with a single one
        local = options.batch * len(mesh.local_devices)
        own = slice(options.index * local, (options.index + 1) * local)
        images = random.standard_normal((local * options.of, *shape), np.float32)[own]
        labels = random.integers(0, 10, local * options.of, np.int32)[own]
        images, labels = sharding.split_batch((images, labels), mesh)
        step = partial(steps.train_step, model=model, optimizer=optimizer, prepare=lambda key, images: images)
        step = jax.jit(step, donate_argnames="state", out_shardings=everywhere)
        step = step.lower(state, images, labels, key).compile()

        def timed(run, number: int) -> list[float]:
            seconds = []
            for _ in range(number):
                started = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - started)
            return seconds

        def train() -> None:
            nonlocal state
            state, loss = step(state, images, labels, key)
            loss.block_until_ready()

        multihost.wait_for_all("compiled")
        state, loss = step(state, images, labels, key)
        first_loss = float(loss)
        timed(train, 2)
        groups = all_reduces(step.as_text() or "")
        result: dict[str, Any] = {"loss": first_loss, "seconds": timed(train, options.steps), "all_reduces": groups}
        if group:
            replay, first = _replay(groups, mesh)
            multihost.wait_for_all("replay")
            timed(lambda: replay(first).block_until_ready(), 2)
            result["replay"] = timed(lambda: replay(first).block_until_ready(), options.steps)
    if options.index == 0:
        print(json.dumps(result))


def measure(options: argparse.Namespace, *, batch: int, devices: int = 1, processes: int = 1, joined: bool = True):
    """The results of the first process; `batch` is per device."""
    command = [sys.executable, __file__, "--work", f"--model={options.model}", f"--batch={batch}"]
    command += [f"--image_size={options.image_size}", f"--steps={options.steps}", f"--of={processes}"]
    if processes > 1 and joined:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command.append(f"--coordinator=127.0.0.1:{free.getsockname()[1]}")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [*command, f"--index={index}"],
            env=environment,
            stdout=subprocess.PIPE if index == 0 else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for index in range(processes)
    ]
    output, _ = running[0].communicate()
    for process in running:
        if process.wait():
            raise SystemExit(f"a measurement failed: run {' '.join(command)} --index=0 to see why")
    return json.loads(output.strip().splitlines()[-1])  # Gloo prints there, too


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="googlenet", help="(default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=32, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="per device, a multiple of 8 (default: %(default)s)")
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8], help="(default: 1 2 4 8)")
    parser.add_argument("--processes", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    # For the child processes.
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        return work(options)

    cases: dict[tuple, dict[str, Any]] = {}
    for number in options.devices:
        cases["weak", number] = {"devices": number, "batch": options.batch // 8}
        cases["strong", number] = {"devices": number, "batch": options.batch // number}
    own = options.batch // options.processes
    cases["apart", options.processes] = {"processes": options.processes, "batch": own, "joined": False}
    cases["together", options.processes] = {"processes": options.processes, "batch": own}
    found = collections.defaultdict(list)
    for _ in range(options.rounds):  # in turns, so that fluctuations of the machine affect all of them
        for case, arguments in cases.items():
            found[case].append(measure(options, **arguments))

    def seconds(case: tuple) -> float:
        return statistics.median(statistics.median(result["seconds"]) for result in found[case])

    print(f"{options.model}, {options.image_size} px, {len(os.sched_getaffinity(0))} cores\n")
    print("| scaling | devices | batch | ms a step | images/s | efficiency |\n| --- | --- | --- | --- | --- | --- |")
    for (kind, number), arguments in cases.items():
        if kind in ("weak", "strong"):
            batch, first = arguments["batch"] * number, (kind, options.devices[0])
            rate, base = batch / seconds((kind, number)), cases[first]["batch"] * first[1] / seconds(first)
            print(f"| {kind} | {number} | {batch} | {1e3 / rate * batch:.1f} | {rate:.0f} | {rate / base:.2f} |")

    print(f"\n{options.processes} processes, each with its share of the cores and a batch of {own}:\n")
    ratios = []
    for apart, together in zip(found["apart", options.processes], found["together", options.processes], strict=True):
        alone, actual = statistics.median(apart["seconds"]), statistics.median(together["seconds"])
        replayed, groups = statistics.median(together["replay"]), together["all_reduces"]
        ratios.append((alone + replayed) / actual)
        megabytes = 4e-6 * sum(math.prod(shape) for shapes in groups for shape in shapes)
        print(
            f"  apart {1e3 * alone:.0f} ms + {len(groups)} all-reduces of {sum(map(len, groups))} arrays, "
            f"{megabytes:.0f} MB, {1e3 * replayed:.0f} ms; together {1e3 * actual:.0f} ms: {ratios[-1]:.2f}"
        )
    print(f"\npredicted / measured: {statistics.median(ratios):.2f}")

    # For the same whole batch. Later losses differ, since rounding errors grow.
    parts = {("strong", number): number for number in options.devices}
    parts["together", options.processes] = options.processes
    same = [case for case, number in parts.items() if number * cases[case]["batch"] == options.batch]
    losses = [found[case][0]["loss"] for case in same]
    if losses:
        print(f"loss of the first step, over all splits of the batch: {min(losses):.6f} to {max(losses):.6f}")
        if not max(losses) - min(losses) < LOSS_TOLERANCE * abs(losses[0]):
            raise SystemExit("error: the losses differ")


if __name__ == "__main__":
    main()
