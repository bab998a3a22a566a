"""Everything that training changes, in one pytree, and its initial value."""

import zlib
from collections.abc import Mapping
from typing import Any, no_type_check

import flax.struct
import jax
import optax
from clu import parameter_overview
from clu.metrics import Metric
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from inception_jax.models.layers import as_outputs
from inception_jax.steps import metrics
from inception_jax.steps.schedules import PlateauState, init_plateau


@no_type_check  # pytest checks calls: trees of shapes, of NumPy arrays or of flags have this structure, too
class TrainState(flax.struct.PyTreeNode):
    """The content of a checkpoint: with it and the config, training continues as if it had not stopped.

    Attributes:
      step: updates made so far, int32.
      params: the network's parameters.
      batch_stats: the network's running statistics.
      opt_state: the Optax chain's.
      plateau: state of the plateau schedule; its scale multiplies every update.
      average: {"params", "batch_stats"}, their moving average; empty if none is kept.
      metrics: sums over the examples since the last evaluation, see `metrics.metric_sums`.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    plateau: PlateauState
    average: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate: the moving average if there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}

    def start_from(self, variables: dict[str, Any]) -> "TrainState":
        """The state with other {"params", "batch_stats"} of the same shapes, also as their averages."""
        own = {"params": self.params, "batch_stats": self.batch_stats}
        given = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), own, {name: variables[name] for name in own})
        return self.replace(**given, average=given if self.average else {})


def stream(seed: int, name: str) -> PRNGKeyArray:
    """The random key for one use of a seed, such as "init" or "train", independent of all other uses and seeds."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def create_state(
    key: PRNGKeyArray,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    dtype: Any = jnp.float32,
    plateau_mode: str = "min",
    with_average: bool = False,
    own_metrics: Mapping[str, type[Metric]] | None = None,
) -> TrainState:
    """The state before the first update; one jitted initialization (`initialization.evaluate` is faster).

    Args:
      image_shape: (height, width, channels).
      dtype: of the images, the batch norm statistics and the metric sums.
      own_metrics: see `metrics.metric_sums`.
    """

    def create(key: PRNGKeyArray) -> TrainState:
        images = jnp.zeros((1, *image_shape), dtype)
        outputs, variables = model.init_with_output(key, images, train=False)
        params = variables["params"]
        batch_stats = jax.tree.map(lambda x: x.astype(dtype), variables.get("batch_stats", {}))
        outputs = as_outputs(outputs)
        sums = metrics.metric_sums(outputs, jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), own=own_metrics)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            plateau=init_plateau(plateau_mode),
            average={"params": params, "batch_stats": batch_stats} if with_average else {},
            metrics=metrics.reset(sums),
        )

    return jax.jit(create)(key)


def count_parameters(params: Any) -> int:
    """The number of trainable parameters."""
    return int(parameter_overview.count_parameters(params))
