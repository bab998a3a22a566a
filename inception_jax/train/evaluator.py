"""Evaluation of whole splits during training."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax.data.dataset import Dataset, eval_batches
from inception_jax.distributed import multihost, sharding
from inception_jax.distributed.watch import moved, waiting
from inception_jax.experiment import Experiment
from inception_jax.models.folding import inference_variables
from inception_jax.steps import metrics
from inception_jax.train.stopping import STEPS_IN_FLIGHT, EvaluationStopped


class Evaluator:
    """Metrics of a whole split, with every example counted once, for any batch size and number of processes.

    Args:
      stop_requested: called before each batch; a true value ends the evaluation with EvaluationStopped.
    Attributes:
      seconds: total time of evaluations, without the first batch, which compiles.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        mesh: Mesh,
        stop_requested: Callable[[], int] = lambda: 0,
    ):
        self.dataset = dataset
        self.mesh = mesh
        batch_size = experiment.config.evaluate.batch_size or experiment.config.batch_size
        batch_size = min(batch_size, max(map(len, dataset.splits.values())))  # anything larger would be padding
        self._batch_size = -(-batch_size // mesh.size) * mesh.size  # padded to a multiple of the mesh size
        self._rows = sharding.local_rows(mesh, self._batch_size)
        # Several processes would have to agree first; they finish the evaluation.
        self._stop_requested = stop_requested if multihost.count() == 1 else lambda: 0
        self._inference_variables: Any = jax.jit(partial(inference_variables, experiment.model))
        self._eval_step: Any = jax.jit(experiment.eval_step, compiler_options=experiment.compiler_options)
        self._ahead: Future[tuple[Callable, Callable]] | None = None
        self._compiled = False
        self.seconds = 0.0

    def compile_ahead(self, variables: dict[str, Any]) -> None:
        """Compiles the programs for variables like these in a thread, so that no evaluation waits for them.

        Does nothing after the first evaluation, when they are already compiled.
        """
        if self._compiled:
            return
        variables = jax.tree.map(_like, variables)
        image_shape = next(iter(self.dataset.splits.values())).image_shape
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        batch = [
            jax.ShapeDtypeStruct((self._batch_size, *shape), dtype, sharding=rows)
            for shape, dtype in ((image_shape, np.uint8), ((), np.int32), ((), np.bool_))
        ]

        def compile_both() -> tuple[Callable, Callable]:
            lowered = self._inference_variables.lower(variables)
            first = lowered.compile()
            folded = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                lowered.out_info,
                first.output_shardings,
            )
            return first, self._eval_step.lower(folded, *batch).compile()

        pool = ThreadPoolExecutor(1, "evaluation")
        self._ahead = pool.submit(compile_both)
        pool.shutdown(wait=False)

    def __call__(self, variables: dict[str, Any], split: str) -> dict[str, float]:
        """The means over the split: loss, top1, top5, metrics from outside the package, and the count."""
        if self._ahead is not None:
            (self._inference_variables, self._eval_step), self._ahead = self._ahead.result(), None
        total, started = None, time.monotonic()
        in_flight: collections.deque[Any] = collections.deque()
        variables = self._inference_variables(variables)
        for batch in eval_batches(self.dataset.splits[split], self._batch_size, self._rows):
            if self._stop_requested():
                raise EvaluationStopped
            sums = self._eval_step(variables, *sharding.split_batch(batch, self.mesh))
            total = sums if total is None else metrics.add(total, sums)
            in_flight.append(sums)
            if len(in_flight) > STEPS_IN_FLIGHT:
                with waiting("the evaluation of all processes"):
                    jax.block_until_ready(in_flight.popleft())
            moved()
            if not self._compiled:
                jax.block_until_ready(sums)
                self._compiled, started = True, time.monotonic()
        total = jax.device_get(total)
        self.seconds += time.monotonic() - started
        return metrics.summarize(total)


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
