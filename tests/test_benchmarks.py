"""The benchmarks run and count what they should; how fast anything is, is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from peers import import_torchvision

from inception_jax.models import create_model
from inception_jax.steps.state import count_parameters

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PEER = f"""
import sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from worker import Side, serve

class Peer(Side):
    def describe(self):
        return {{"versions": {{"torch": "2.0"}}, "gpu": None}}

    def matrix_product(self, side, dtype):
        return lambda: time.sleep(0.001)

    def make(self, compiled, **arguments):
        if compiled:
            raise RuntimeError("no compiler\\nAdvice.")
        return {{"parameters": PARAMETERS, "memory_before": self.memory_before()}}

    def warm_up(self):
        return super().warm_up() | {{"flops": 10**9}}

    def steps(self, number):
        time.sleep(0.01 * number)

serve(Peer())
"""


@pytest.fixture
def train_step(monkeypatch):
    """The benchmark as a module; its folder stands first on the path, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train_step

    return train_step


def parameters_of(name, side, **options):
    model = create_model(name, num_classes=1000, **options)
    images = np.zeros((1, side, side, 3), np.float32)
    return count_parameters(jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"])


def test_help_shows_examples():
    result = subprocess.run([sys.executable, BENCHMARKS / "train_step.py", "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--peer-python" in result.stdout
    assert "  python benchmarks/train_step.py --models googlenet" in result.stdout


@pytest.mark.slow
def test_our_side_is_measured_against_a_peer(train_step, tmp_path, monkeypatch, capsys):
    peer = tmp_path / "peer.py"
    peer.write_text(PEER.replace("PARAMETERS", str(parameters_of("simple_cnn", 16))))
    monkeypatch.setattr(train_step, "SCRIPTS", train_step.SCRIPTS | {"eager": peer, "compile": peer})
    flags = "--models simple_cnn --shapes 2x16 --rounds 2 --seconds 0.05 --modes train --device cpu"
    train_step.main([*flags.split(), "--json", str(tmp_path / "out.json")])

    lines = capsys.readouterr().out.splitlines()
    tables = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert [len(row) for row in tables] == [len(train_step.SPEED_HEADER)] * 3 + [len(train_step.START_HEADER)] * 3
    assert tables[2][:3] == ["simple_cnn", "2x16", "train"]
    assert lines[-1] == "simple_cnn 2x16 train: no compile: RuntimeError: no compiler"
    (case,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [set(rates) for rates in case["rounds"]] == [{"ours", "eager"}] * 2
    assert set(case["first_step_seconds"]) == {"cold", "warm", "eager"}
    assert case["sides"]["ours"]["peak_memory"] > case["sides"]["ours"]["memory_before"] > 10**7


def test_our_side_waits_for_every_step(train_step):
    del train_step  # whose folder our_step is found in
    import our_step

    class Result:
        ready = False

        def block_until_ready(self):
            self.ready = True

    results = []
    side = our_step.OurSide()
    side._step = lambda: results.append(Result()) or results[-1]
    side.steps(5)
    assert [result.ready for result in results] == [True] * 5


def test_a_row_compares_with_the_better_peer_round_by_round(train_step):
    facts = {"flops": 8 * 10**9, "peak_memory": 400e6, "memory_before": 300e6}
    case = {
        "model": "googlenet",
        "shape": "4x32",
        "mode": "train",
        "images_per_second": {"ours": 10.0, "eager": 8.0, "compile": 12.5},
        "sides": {"ours": {"peak_memory": 500e6, "memory_before": 200e6}, "eager": facts, "compile": facts},
        "rounds": [{"ours": 10.0, "eager": 8.0, "compile": 12.5}, {"ours": 9.0, "eager": 8.0, "compile": 10.0}],
    }
    assert train_step.speed_row(case, 100e9) == [
        "googlenet", "4x32", "train", "10", "-", "8", "12.5", "-", "-", "0.85 (0.80 to 0.90)", "20%, 25%",
        "500 (200), 400 (300)", "1.25",
    ]  # fmt: skip
    names = ["googlenet", "4x32", "train"]
    assert train_step.ratio_rows(case) == [
        [*names, "ours", "eager", "1.19 (1.12 to 1.25)"],
        [*names, "ours", "compile", "0.85 (0.80 to 0.90)"],
    ]


ENGINE = """
import sys, time
sys.path.insert(0, {folder!r})
from worker import Side, serve

name = (sys.argv[1:] or ["jax"])[0]

class Peer(Side):
    def describe(self):
        return {{"versions": {{name: "1.0"}}, "gpu": None}}

    def matrix_product(self, side, dtype):
        return lambda: time.sleep(0.001)

    def make(self, dtype, path=None, **arguments):
        if name == "jax":
            return {{"parameters": {parameters}, "memory_before": self.memory_before()}}
        assert open(path, "rb").read(4)
        if name == "onnxruntime" and dtype != "float32":
            raise ValueError("not in that type")
        return {{"memory_before": self.memory_before()}}

    def steps(self, number):
        time.sleep(0.01 * number)

serve(Peer())
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_is_measured_against_engines(train_step, tmp_path, monkeypatch, capsys, dtype):
    pytest.importorskip("onnx", reason="onnx is in the extras 'onnxruntime' and 'openvino'")
    peer = tmp_path / "peer.py"
    peer.write_text(ENGINE.format(folder=str(BENCHMARKS), parameters=parameters_of("simple_cnn", 16)))
    stand_ins = dict.fromkeys(("ours", "onnxruntime", "openvino"), peer)
    monkeypatch.setattr(train_step, "SCRIPTS", train_step.SCRIPTS | stand_ins)
    flags = "--models simple_cnn --shapes 2x16 --rounds 2 --seconds 0.05 --device cpu --auto"
    flags += f" --peers onnxruntime openvino --dtype {dtype} --json {tmp_path / 'out.json'}"
    train_step.main(flags.split())

    (case,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    sides = {"ours", "auto", "onnxruntime", "openvino"} - ({"onnxruntime"} if dtype == "bfloat16" else set())
    assert case["mode"] == "inference"
    assert [set(rates) for rates in case["rounds"]] == [sides] * 2
    low, high = sorted(rates["auto"] / rates["openvino"] for rates in case["rounds"])
    assert case["ratios"]["auto"]["openvino"] == [pytest.approx((low + high) / 2), low, high]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| simple_cnn | 2x16 | inference | auto | openvino | ") for line in lines) == 1
    assert ("simple_cnn 2x16 inference: no onnxruntime: ValueError: not in that type" in lines) == (dtype == "bfloat16")
    assert any(line.startswith("simple_cnn 2x16 inference: engine: ") for line in lines)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_engines_compute_what_is_exported(train_step, tmp_path, engine):
    for package in ("onnx", engine):
        pytest.importorskip(package, reason=f"{package} is in the extra {engine!r}")
    options = train_step.parse_arguments([])
    graph = str(tmp_path / "network.onnx")
    arguments = {"name": "simple_cnn", "batch": 2, "side": 16, "mode": "inference", "small_stem": False}
    with train_step.start("auto", "cpu", options) as worker:
        assert worker.ask("export", path=graph, dtype="float32", **arguments) == parameters_of("simple_cnn", 16)
    with train_step.start(engine, "cpu", options) as worker:
        assert engine in worker.ask("describe")["versions"]
        worker.ask("make", path=graph, batch=2, side=16, dtype="float32")
        assert worker.ask("warm_up").get("hint", "LATENCY") in ("LATENCY", "THROUGHPUT")
        assert worker.ask("measure", duration=0.0)[0] == 2


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("googlenet", 32, {}),
        ("resnet18", 32, {"stem": "small"}),
        ("resnet50", 64, {}),
        ("vgg11", 32, {}),
        ("tiny_vgg_a", 64, {}),
        ("tiny_vgg_e", 64, {}),
        ("tiny_vgg_f", 64, {}),
    ],
)
def test_the_peer_has_our_networks(train_step, name, side, options):
    del train_step  # whose folder torch_peer is found in
    import_torchvision()
    import torch
    import torch_peer

    with torch.device("meta"):
        network = torch_peer.make_network(name, bool(options))
    assert sum(x.numel() for x in network.parameters()) == parameters_of(name, side, **options)
    assert network(torch.zeros(2, 3, side, side, device="meta")).shape == (2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peer_trains(train_step, dtype):
    import_torchvision()
    arguments = {"name": "resnet18", "batch": 2, "side": 16, "small_stem": True, "dtype": dtype, "compiled": False}
    flops = {}
    with train_step.start("eager", "cpu", train_step.parse_arguments([])) as worker:
        for mode in ("train", "inference"):
            worker.ask("make", mode=mode, **arguments)
            flops[mode] = worker.ask("warm_up")["flops"]
            number, seconds = worker.ask("measure", duration=0.0)
            assert number == 2
            assert seconds > 0
    # The first convolution needs no gradient of its input; all else costs as much again, twice.
    first = 2 * 2 * 16 * 16 * 64 * 27
    assert flops["train"] == 3 * flops["inference"] - first
