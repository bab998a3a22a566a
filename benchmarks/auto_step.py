"""A variant of our side in train_step.py: `Run.logits` with the engine that "auto" chooses, as in `serve`.

It also writes the graph that the sides of ONNX Runtime and OpenVINO read.
"""

import gc
import io
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp
from worker import Side, serve

from inception_jax import config, process
from inception_jax.experiment import Inputs
from inception_jax.models import create_model
from inception_jax.runs import run
from inception_jax.steps import initialization
from inception_jax.steps.state import count_parameters
from inception_jax.trained import engines
from inception_jax.trained.export import run_as_onnx


class AutoSide(Side):
    def describe(self) -> dict[str, Any]:
        return {"versions": {"inception_jax": version("inception_jax")}, "gpu": None}

    def export(self, path: str, name: str, batch: int, side: int, mode: str, small_stem: bool, dtype: str) -> int:
        """Exports the network to an ONNX file, for normalized float32 images; returns the number of parameters."""
        network = make_run(name, side, small_stem, dtype)
        Path(path).write_bytes(run_as_onnx(network, "float32"))
        return count_parameters(network.variables["params"])

    def make(self, name: str, batch: int, side: int, mode: str, small_stem: bool, dtype: str) -> dict[str, Any]:
        before = self.memory_before()
        network, said = make_run(name, side, small_stem, dtype), io.StringIO()
        handler = logging.StreamHandler(said)
        engines.logger.addHandler(handler)
        engines.logger.setLevel(logging.INFO)
        parameters = count_parameters(network.variables["params"])
        network = engines.use(network, "auto", batch_size=batch)
        engines.logger.removeHandler(handler)
        images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        self._step = lambda: network.logits(images)
        self.steps(1)
        return {"parameters": parameters, "memory_before": before, "said": said.getvalue().splitlines()}

    def steps(self, number: int) -> None:
        for _ in range(number):
            self._step()


def make_run(name: str, side: int, small_stem: bool, dtype: str) -> run.Run:
    """An untrained run with random weights."""
    options = {"stem": "small"} if small_stem else {}
    model = create_model(name, num_classes=1000, dtype=jnp.dtype(dtype), dropout_rate=0.0, **options)
    key = jax.random.key(0)
    variables = initialization.evaluate(jax.jit(lambda key: initial(model, key, side)).trace(key), key)
    fields = config.default_config()
    fields.compute_dtype = dtype
    inputs = Inputs(tuple(map(str, range(1000))), (side, side, 3), (0.5,) * 3, (0.25,) * 3)
    return run.Run(Path(name), fields, model, {"batch_stats": {}, **variables}, inputs, 0)


def initial(model: nn.Module, key: jax.Array, side: int) -> dict[str, Any]:
    """The model's initial variables."""
    return dict(model.init(key, jnp.zeros((1, side, side, 3)), train=False))


if __name__ == "__main__":
    gc.set_threshold(process.GC_THRESHOLD)  # as in our programs
    serve(AutoSide())
