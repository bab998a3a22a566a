"""The ONNX Runtime and OpenVINO sides of train_step.py: inference of a graph in a file. Independent of JAX."""
# pyright: reportMissingImports=false

import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from worker import Side, cores, seconds, serve

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class EngineSide(Side):
    """Subclasses set `_step`."""

    package = ""

    def describe(self) -> dict[str, Any]:
        library = __import__(self.package)
        return {
            "versions": {self.package: library.__version__.partition("-")[0], "python": platform.python_version()},
            "gpu": None,
        }

    def make(self, path: str, batch: int, side: int, dtype: str) -> dict[str, Any]:
        """Loads the graph; `path` is an ONNX file whose input "images" is float32 (batch, side, side, 3)."""
        before = self.memory_before()
        images = np.random.default_rng(0).standard_normal((batch, side, side, 3), np.float32)
        self.load(path, images, dtype)
        self.steps(1)
        return {"memory_before": before}

    def load(self, path: str, images: np.ndarray, dtype: str) -> None:
        raise NotImplementedError


class OnnxRuntimeSide(EngineSide):
    package = "onnxruntime"

    def load(self, path: str, images: np.ndarray, dtype: str) -> None:
        import onnxruntime

        if dtype != "float32":
            raise ValueError(f"it supports float32, not {dtype}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._step = lambda: session.run(None, {"images": images})

    def steps(self, number: int) -> None:
        for _ in range(number):
            self._step()


class OpenVinoSide(EngineSide):
    """For batches of a fixed size, with the faster of two hints: all cores on one batch, or several batches at once."""

    package = "openvino"

    def load(self, path: str, images: np.ndarray, dtype: str) -> None:
        import openvino

        core = openvino.Core()
        if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("it does not support bfloat16 on this processor")
        model = core.read_model(path)
        model.reshape(list(images.shape))
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "INFERENCE_NUM_THREADS": cores()}
        self._ways: dict[str, Callable[[int], None]] = {}
        for hint in ("LATENCY", "THROUGHPUT"):
            compiled = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": hint})
            make = self._one_by_one if hint == "LATENCY" else self._queue
            self._ways[hint] = make(compiled, images)
        self._way = self._ways["LATENCY"]

    @staticmethod
    def _one_by_one(compiled: Any, images: np.ndarray) -> Callable[[int], None]:
        request = compiled.create_infer_request()

        def steps(number: int) -> None:
            for _ in range(number):
                request.infer({0: images}, share_inputs=True)

        return steps

    @staticmethod
    def _queue(compiled: Any, images: np.ndarray) -> Callable[[int], None]:
        import openvino

        queue = openvino.AsyncInferQueue(compiled)

        def steps(number: int) -> None:
            for _ in range(number):
                queue.start_async({0: images}, share_inputs=True)
            queue.wait_all()

        return steps

    def steps(self, number: int) -> None:
        self._way(number)

    def warm_up(self) -> dict[str, Any]:
        """Chooses the faster hint, and frees the other's memory."""
        took = {}
        for hint, steps in self._ways.items():
            steps(4)
            took[hint] = min(seconds(lambda steps=steps: steps(4)) for _ in range(3))
        chosen = min(took, key=lambda hint: took[hint])
        self._ways = {chosen: self._ways[chosen]}
        self._way = self._ways[chosen]
        return super().warm_up() | {"hint": chosen}


if __name__ == "__main__":
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] (it would report the import)
    serve({"onnxruntime": OnnxRuntimeSide, "openvino": OpenVinoSide}[sys.argv[1]]())
