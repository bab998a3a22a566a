"""One training step, or one prediction, against others': speed, memory, time to the first step.

Every side is a separate process, and one works at a time; they take turns in rounds, so that other load on the machine
affects all of them. The networks are equal (their numbers of parameters are compared), as are the batch, the
optimizer (SGD with momentum 0.9, or Adam), the threads and the allocator's huge pages; dropout is 0. They compute in
--dtype, PyTorch's by autocast. Inference can also be compared with ONNX Runtime (float32 only) and OpenVINO, on the
graph that this package exports, and --auto also measures ours with the engine that `predict` and `serve` choose: from
images as they are stored, while all the others start from normalized ones. Prints Markdown.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import Worker, WorkerError, cores

from inception_jax import process

EXAMPLES = """\
Run nothing else at the same time. Most of the time is compilation; --peers eager skips torch.compile's.

examples, in the repository's root:
  python benchmarks/train_step.py --json train_step.json
  python benchmarks/train_step.py --models googlenet --shapes 64x32 --rounds 3 --peers eager
  python benchmarks/train_step.py --peer-python ../torch/bin/python --models vgg11 --modes inference
  python benchmarks/train_step.py --models googlenet --dtype bfloat16 --peers eager
  python benchmarks/train_step.py --models tiny_vgg_a tiny_vgg_d --shapes 128x64 --modes train --peers eager
  python benchmarks/train_step.py --models googlenet --modes inference --auto --peers eager onnxruntime openvino
  python benchmarks/train_step.py --device gpu --shapes 256x224 512x224
"""
FOLDER = Path(__file__).parent
SCRIPTS = {
    "ours": FOLDER / "our_step.py",
    "auto": FOLDER / "auto_step.py",
    **dict.fromkeys(("eager", "compile"), FOLDER / "torch_peer.py"),
    **dict.fromkeys(("onnxruntime", "openvino"), FOLDER / "engine_peer.py"),
}
OURS, TORCH, ENGINES = ("ours", "auto"), ("eager", "compile"), ("onnxruntime", "openvino")
DEFAULTS = {  # models, shapes
    "cpu": (("googlenet", "resnet18", "resnet50", "vgg11"), ("64x32", "64x64", "16x224")),
    "gpu": (("googlenet", "resnet50"), ("256x224",)),
}
SPEED_HEADER = (
    "model", "batch x side", "mode", "ours, images/s", "auto", "eager", "torch.compile", "ONNX Runtime", "OpenVINO",
    "ours / best peer (min to max)", "of the peak: ours, peer", "memory, MB: ours, peer (before the network)",
    "ours / peer",
)  # fmt: skip
SIDES = ("ours", "auto", "eager", "compile", "onnxruntime", "openvino")  # in the order of the table
RATIO_HEADER = ("model", "batch x side", "mode", "one", "other", "one / other (min to max)")
START_HEADER = ("model", "batch x side", "ours, no cache", "ours, cached", "eager", "torch.compile")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--models", nargs="+", help="torchvision's names, tiny_vgg_a to _f (default: googlenet resnet18 resnet50 vgg11)"
    )
    add("--shapes", nargs="+", type=shape, help="BATCHxSIDE (default: 64x32 64x64 16x224; on a GPU 256x224)")
    add("--modes", nargs="+", choices=("train", "inference"), default=["train", "inference"])
    add(
        "--peers",
        nargs="+",
        choices=(*TORCH, *ENGINES),
        default=["eager", "compile"],
        help="onnxruntime and openvino: inference on a CPU, from this Python (default: eager compile)",
    )
    add("--auto", action="store_true", help="also measure inference on a CPU with the engine that auto chooses")
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="of training (default: sgd)")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=1.0, help="of steps per side and round, at least two steps (default: 1)")
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="auto: a GPU if both sides see one, else the CPU",
    )
    add(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU, else float32"
    )
    add("--threads", type=int, help="cores to use, on Linux (default: all)")
    add("--peer-python", default=sys.executable, help="Python with PyTorch (default: this one)")
    add("--json", type=Path, help="file for all results, including every round")
    return parser.parse_args(argv)


def shape(text: str) -> str:
    """Validates a BATCHxSIDE."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise ValueError(text)
    return text


def start(side: str, device: str, options: argparse.Namespace, cache: str = "") -> Worker:
    """The process of a side. Compiled programs are cached in `cache`."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment.setdefault("GLIBC_TUNABLES", process.MALLOC)  # as in our programs
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the GPU
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"  # as in the trainer
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
    if device == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    python = options.peer_python if side in TORCH else sys.executable
    return Worker(python, SCRIPTS[side], environment, *([side] if side in ENGINES else []))


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The machine: the sides' versions, the shared device, and its speed in matrix products."""
    sides = ["ours", *(["eager"] if set(TORCH) & set(options.peers) else [])]
    load = os.getloadavg()  # before our own load
    found = {}
    for side in sides:
        with start(side, options.device, options) as worker:
            found[side] = worker.ask("describe")
    gpus = [found[side]["gpu"] for side in sides]
    if options.device == "gpu" and not all(gpus):
        raise SystemExit(f"error: no GPU is seen by {' and '.join(s for s in sides if not found[s]['gpu'])}")
    device = "gpu" if all(gpus) else "cpu"
    for side in [side for side in ENGINES if side in options.peers]:
        with start(side, "cpu", options) as worker, contextlib.suppress(WorkerError):  # it is omitted, with a note
            found[side] = worker.ask("describe")
    if options.dtype == "auto":
        options.dtype = "bfloat16" if device == "gpu" else "float32"
    flops = {}
    for side in sides:
        with start(side, device, options) as worker:
            flops[side] = worker.ask("matrix_flops", dtype=options.dtype)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "device": device,
        "dtype": options.dtype,
        "gpu": gpus[0] if device == "gpu" else None,
        "cpu": models[0] if models else platform.processor(),
        "cores": cores(),
        "load_average": load,
        "platform": platform.platform(),
        "versions": {side: known["versions"] for side, known in found.items()},
        "matrix_flops": flops,
    }


def measure(model: str, shape: str, mode: str, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """All results for one network, shape and mode: the sides are created one after the other, then timed in rounds."""
    batch, length = map(int, shape.split("x"))
    small_stem = model.startswith("resnet") and length <= 32
    arguments = {"name": model, "batch": batch, "side": length, "mode": mode, "small_stem": small_stem}
    arguments["dtype"] = options.dtype
    first_step, facts, left_out, rounds = {}, {}, {}, []
    workers: dict[str, Worker] = {}

    def make(worker: Worker, side: str, label: str) -> None:
        given = arguments | ({"compiled": side == "compile"} if side in TORCH else {})
        if side in ("ours", *TORCH):
            given["optimizer"] = options.optimizer
        if side in ENGINES:
            given = {"path": graph, "batch": batch, "side": length, "dtype": options.dtype}
        facts[side] = worker.ask("make", **given)
        first_step[label] = time.perf_counter() - worker.started

    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as stack:
        graph = str(Path(cache, "network.onnx"))
        with start("ours", device, options, cache) as worker:
            make(worker, "ours", "cold")
        sides = ["ours", *(["auto"] if options.auto else []), *options.peers]
        if mode != "inference" or device != "cpu":
            sides = [side for side in sides if side not in ("auto", *ENGINES)]
        if set(ENGINES) & set(sides):
            with start("auto", device, options, cache) as worker:
                parameters = worker.ask("export", path=graph, **arguments)
            if parameters != facts["ours"]["parameters"]:
                raise SystemExit(f"error: the graph of {model} has {parameters} parameters: {facts}")
        for side in sides:
            worker = stack.enter_context(start(side, device, options, cache))
            try:
                make(worker, side, "warm" if side == "ours" else side)
                facts[side] |= worker.ask("warm_up")
                facts[side]["peak_memory"] = worker.ask("peak_memory")
                workers[side] = worker
            except WorkerError as error:
                if side not in ("compile", *ENGINES) or options.peers == [side]:
                    raise
                left_out[side] = error.reason
                facts.pop(side, None)
        if len({fact["parameters"] for fact in facts.values() if "parameters" in fact}) > 1:
            raise SystemExit(f"error: the sides' {model} differ: {facts}")
        for number in range(options.rounds):
            order = list(workers)[:: 1 if number % 2 == 0 else -1]
            took = {side: workers[side].ask("measure", duration=options.seconds) for side in order}
            rounds.append({side: batch * steps / seconds for side, (steps, seconds) in took.items()})
    return {
        "model": model,
        "shape": shape,
        "mode": mode,
        "images_per_second": {side: statistics.median(round[side] for round in rounds) for side in workers},
        "ratios": ratios(rounds),
        "first_step_seconds": first_step,
        "sides": facts,
        "left_out": left_out,
        "rounds": rounds,  # images/s
    }


def ratios(rounds: list[dict[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Ratios of each of ours to each peer: the median over the rounds, the minimum and the maximum."""
    found: dict[str, dict[str, list[float]]] = {}
    for one, other in itertools.product(OURS, (*TORCH, *ENGINES)):
        each = [round[one] / round[other] for round in rounds if one in round and other in round]
        if each:
            found.setdefault(one, {})[other] = [statistics.median(each), min(each), max(each)]
    return found


def ratio_rows(case: dict[str, Any]) -> list[list[str]]:
    """The rows under RATIO_HEADER."""
    return [
        [case["model"], case["shape"], case["mode"], one, other, f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        for one, others in ratios(case["rounds"]).items()
        for other, (middle, low, high) in others.items()
    ]


def speed_row(case: dict[str, Any], peak_flops: float) -> list[str]:
    """A row under SPEED_HEADER. The best peer has the highest median; it is compared in every round."""
    rates, facts = case["images_per_second"], case["sides"]
    peer = max((side for side in rates if side not in OURS), key=lambda side: rates[side], default=None)
    if peer is None:
        rest = [f"{rates[side]:,.4g}" if side in rates else "-" for side in SIDES]
        return [case["model"], case["shape"], case["mode"], *rest, *["-"] * (len(SPEED_HEADER) - 3 - len(rest))]
    middle, low, high = ratios(case["rounds"])["ours"][peer]
    flops = next((facts[side]["flops"] for side in facts if "flops" in facts[side]), None)  # PyTorch counts them
    flops_per_image = (flops or 0) / int(case["shape"].split("x")[0])
    shares = [f"{rates[side] * flops_per_image / peak_flops:.0%}" if flops else "-" for side in ("ours", peer)]
    memory = [facts[side]["peak_memory"] for side in ("ours", peer)]
    before = [facts[side]["memory_before"] for side in ("ours", peer)]
    known = all(memory)
    return [
        case["model"],
        case["shape"],
        case["mode"],
        *(f"{rates[side]:,.4g}" if side in rates else "-" for side in SIDES),
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        ", ".join(shares),
        ", ".join(f"{peak / 1e6:,.0f} ({own / 1e6:,.0f})" for peak, own in zip(memory, before, strict=True))
        if known
        else "-",
        f"{memory[0] / memory[1]:.2f}" if known else "-",
    ]


def start_row(case: dict[str, Any]) -> list[str]:
    """A row under START_HEADER: from the start of the process to the end of the first step."""
    took = case["first_step_seconds"]
    times = (f"{took[label]:.1f} s" if label in took else "-" for label in ("cold", "warm", "eager", "compile"))
    return [case["model"], case["shape"], *times]


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def header_lines(cells: Sequence[str]) -> str:
    return f"{table_line(cells)}\n{table_line(['---'] * len(cells))}"


def machine_line(machine: dict[str, Any]) -> str:
    versions, flops = machine["versions"], machine["matrix_flops"]
    device = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    load = machine["load_average"][0]
    busy = load > machine["cores"] / 4
    names = {
        "eager": ("PyTorch", "torch"),
        "onnxruntime": ("ONNX Runtime", "onnxruntime"),
        "openvino": ("OpenVINO", "openvino"),
    }
    peers = [f"{name} {versions[side][package]}" for side, (name, package) in names.items() if side in versions]
    products = ", ".join(f"{flops[side] / 1e9:,.0f} by {'JAX' if side == 'ours' else names[side][0]}" for side in flops)
    return (
        f"{device}, {machine['dtype']}. JAX {versions['ours']['jax']} against {', '.join(peers)}. GFLOP/s of "
        f"matrix products: {products}; the peak is the highest. Load average at the start: "
        f"{load:.1f}{', TOO HIGH: other programs slow PyTorch down more than JAX' if busy else ''}."
    )


def main(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.threads:
        if not hasattr(os, "sched_setaffinity"):
            raise SystemExit("error: --threads needs Linux")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # all the sides inherit it
    machine = describe(options)
    models, shapes = DEFAULTS[machine["device"]]
    peak_flops = max(machine["matrix_flops"].values())
    print(machine_line(machine), header_lines(SPEED_HEADER), sep="\n\n", flush=True)
    modes = options.modes if set(TORCH) & set(options.peers) else ["inference"]  # engines do not train
    cases, notes = [], []
    for model, shape, mode in itertools.product(options.models or models, options.shapes or shapes, modes):
        case = measure(model, shape, mode, machine["device"], options)
        cases.append(case)
        notes += [f"{model} {shape} {mode}: no {side}: {reason}" for side, reason in case["left_out"].items()]
        notes += [f"{model} {shape} {mode}: {line}" for line in case["sides"].get("auto", {}).get("said", [])]
        print(table_line(speed_row(case, peak_flops)), flush=True)
        if options.json:  # after every case, so that results are kept if a later one fails
            everything = {"command": [sys.executable, *sys.argv], "machine": machine, "cases": cases}
            options.json.write_text(json.dumps(everything, indent=1) + "\n")
    rows = [row for case in cases for row in ratio_rows(case)]
    if len(rows) > len(cases):
        print(f"\nEach of ours against each of the others, round by round:\n\n{header_lines(RATIO_HEADER)}")
        print(*map(table_line, rows), sep="\n")
    training = [case for case in cases if case["mode"] == "train"]
    if training:
        print(f"\nFrom the start of the process to the end of the first training step:\n\n{header_lines(START_HEADER)}")
        print(*(table_line(start_row(case)) for case in training), sep="\n")
    if notes:
        print("", *notes, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except WorkerError as error:
        raise SystemExit(f"error: {error}") from None
