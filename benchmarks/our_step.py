"""Our side of train_step.py: the steps, compiled and called as in the trainer and `Run.predict`."""

import collections
import gc
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from worker import Side, serve

from inception_jax import ops, process, steps
from inception_jax.models import create_model
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.steps import initialization
from inception_jax.steps.optimizers import make_optimizer
from inception_jax.steps.state import count_parameters, create_state

STEPS_IN_FLIGHT = 2  # as in inception_jax.train, which is not imported because its libraries use memory


class OurSide(Side):
    def __init__(self):
        self.on_gpu = jax.default_backend() == "gpu"

    def describe(self) -> dict[str, Any]:
        versions = {name: version(name) for name in ("inception_jax", "jax", "flax", "optax")}
        versions["python"] = platform.python_version()
        return {"versions": versions, "gpu": jax.devices()[0].device_kind if self.on_gpu else None}

    def matrix_product(self, side: int, dtype: str) -> Callable[[], Any]:
        x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
        multiply = jax.jit(jnp.matmul, compiler_options=ops.compiler_options(dtype))
        return lambda: multiply(x, x).block_until_ready()

    def make(
        self, name: str, batch: int, side: int, mode: str, small_stem: bool, dtype: str, optimizer: str = "sgd"
    ) -> dict[str, Any]:
        before = self.memory_before()
        options = {"stem": "small"} if small_stem else {}
        model = create_model(name, num_classes=1000, dtype=jnp.dtype(dtype), dropout_rate=0.0, **options)
        rule = make_optimizer(optimizer, 1e-3 if optimizer == "adam" else 0.01, momentum=0.9)
        random = np.random.default_rng(0)
        images = jax.device_put(random.standard_normal((batch, side, side, 3), np.float32))
        labels = jax.device_put(random.integers(0, 1000, batch, np.int32))
        key = jax.random.key(0)

        create = partial(create_state, model=model, optimizer=rule, image_shape=(side, side, 3))
        beginning = jax.jit(create).trace(key)
        template = beginning.out_info
        with ThreadPoolExecutor(1) as pool:  # concurrently, as in the trainer
            initial = pool.submit(initialization.evaluate, beginning, key)
            if mode == "train":
                program = partial(steps.train_step, model=model, optimizer=rule, prepare=lambda key, images: images)
                program = jax.jit(program, donate_argnames="state").lower(template, images, labels, key)
            else:
                fold = jax.jit(partial(inference_variables, model))
                program = partial(steps.predict_step, model=fold_model(model), prepare=lambda images: images)
                folded = jax.eval_shape(fold, template.variables)
                program = jax.jit(program).lower(folded, images)
            program = program.compile(ops.compiler_options(dtype))
        state = jax.device_put(initial.result(), may_alias=False)  # NumPy's memory is not donated

        def train() -> jax.Array:
            nonlocal state
            state, loss = program(state, images, labels, key)
            return loss

        self._step = train if mode == "train" else partial(program, fold(state.variables), images)
        jax.clear_caches()  # as in the command
        self.steps(1)
        return {"parameters": count_parameters(template.params), "memory_before": before}

    def steps(self, number: int) -> None:
        in_flight: collections.deque[jax.Array] = collections.deque()
        for _ in range(number):
            in_flight.append(self._step())
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
        jax.block_until_ready(list(in_flight))  # it ignores a deque's content

    def peak_memory(self) -> int | None:
        if not self.on_gpu:
            return super().peak_memory()
        # Since the start of the process: JAX cannot reset it. The program comes from the cache, so that compilation
        # does not contribute.
        statistics = jax.devices()[0].memory_stats()
        return statistics and statistics["peak_bytes_in_use"]


if __name__ == "__main__":
    gc.set_threshold(process.GC_THRESHOLD)  # as in our programs
    serve(OurSide())
