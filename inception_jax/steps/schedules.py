"""Learning rate (lr) schedules: functions of the step, and the plateau rule, which depends on a metric.

A schedule maps the number of updates made so far to the lr of the next one. The plateau rule watches a metric instead:
`plateau_update` runs once per evaluation, and the train step multiplies its updates by `scale`.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import flax.struct
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, ScalarLike

from inception_jax.errors import UserError, check_choice, unknown_name

SCHEDULES = ("constant", "step", "plateau", "cosine", "inverse_time")

LARGEST_STEP = 2**31 - 1  # steps are int32
MOST_REDUCTIONS = 1_000_000  # for a step schedule, whose lrs are a table

# torch.optim.lr_scheduler.ReduceLROnPlateau's `eps`: smaller changes of the lr are not made.
SMALLEST_CHANGE = 1e-8


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    steps_per_epoch: int,
    num_epochs: float,
    warmup_epochs: float = 0.0,
    every_epochs: float = 8.0,
    boundaries: Sequence[float] = (),
    factor: float = 0.1,
    final_rate: float = 0.0,
    cycles: int = 1,
    cycle_factor: float = 1.0,
    decay_rate: float = 1e-6,
) -> optax.Schedule:
    """The function `step -> lr` of this name; pure, and in the precision of JAX's default float.

    - `constant`; also for `plateau`, whose reductions are in `PlateauState.scale`
    - `step`: multiplied by `factor` after every `every_epochs`, or at each of the `boundaries` (in epochs) if
      there are any: `torch.optim.lr_scheduler.StepLR` and `MultiStepLR`
    - `cosine`: half a cosine from `learning_rate` to `final_rate` over the steps after the warm-up:
      `CosineAnnealingLR`. With several `cycles` it starts again at the end of each, see `cycle_ends`:
      `CosineAnnealingWarmRestarts` (Loshchilov and Hutter 2017), and the schedule of snapshot ensembles (Huang et al.
      2017)
    - `inverse_time`: `learning_rate / (1 + decay_rate * step)`, the `decay` of Keras's first optimizers

    All of them can be preceded by a linear warm-up: update i of its W has lr `learning_rate * i / W`, i from 1,
    as in `LinearLR(start_factor=1 / W, total_iters=W - 1)`. Epochs and steps are counted from the start of the run:
    a boundary at epoch 60 is at epoch 60, with or without a warm-up. Only the cosine starts where the warm-up
    ends, as in `SequentialLR`.

    Raises:
      UserError: an unknown name; `every_epochs` or a cycle shorter than a step; more steps than fit in int32; lrs too
        large for float32.
    """
    for field, epochs in (("num_epochs", num_epochs), ("warmup_epochs", warmup_epochs)):
        if epochs * steps_per_epoch > LARGEST_STEP:
            raise UserError(
                f"{field}={epochs} is not allowed: an epoch has {steps_per_epoch} steps, so it must be at most "
                f"{LARGEST_STEP // steps_per_epoch}"
            )
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if name in ("constant", "plateau"):
        schedule = _constant(learning_rate)
    elif name == "step":
        if not boundaries:
            if every_epochs * steps_per_epoch < 1:
                raise UserError(
                    f"every_epochs={every_epochs} is shorter than a step: an epoch has {steps_per_epoch} steps; "
                    f"choose at least {1 / steps_per_epoch:g}"
                )
            reductions = math.ceil(num_epochs / every_epochs)
            if reductions > MOST_REDUCTIONS:
                raise UserError(
                    f"every_epochs={every_epochs} makes {reductions} reductions in {num_epochs} epochs: "
                    f"choose at least {num_epochs / MOST_REDUCTIONS:g}"
                )
            boundaries = [every_epochs * i for i in range(1, reductions + 1)]
        schedule = _step(learning_rate, [epoch * steps_per_epoch for epoch in sorted(boundaries)], factor)
    elif name == "cosine":
        ends = cycle_ends(num_epochs, steps_per_epoch, cycles, cycle_factor)
        schedule = _cosine(learning_rate, final_rate, (warmup_steps, *ends[:-1]), ends)
    elif name == "inverse_time":
        schedule = _inverse_time(learning_rate, decay_rate)
    else:
        raise unknown_name("schedule", name, SCHEDULES)

    def with_warmup(step):
        step = jnp.asarray(step, float)  # exact up to 2**24; the quotient of two int32 is float32 under x64 too
        if not warmup_steps:
            return schedule(step)
        return jnp.where(step < warmup_steps, learning_rate * ((step + 1) / warmup_steps), schedule(step))

    return with_warmup


def _constant(rate: float) -> optax.Schedule:
    return lambda step: jnp.full_like(step, rate)


def _step(rate: float, boundaries: Sequence[float], factor: float) -> optax.Schedule:
    # The powers are computed once in double precision; the rounding keeps 3 * 0.1 * 10 steps at 3.
    # Boundaries beyond the largest step number are never reached.
    starts = np.array([math.ceil(round(min(boundary, LARGEST_STEP), 6)) for boundary in boundaries])
    with np.errstate(over="ignore", under="ignore"):
        rates = rate * np.power(float(factor), np.arange(len(starts) + 1))
    if not rates.max() <= np.finfo(np.float32).max:
        raise UserError(
            f"factor={factor} is not allowed: the learning rate exceeds float32 after {len(starts)} times; choose less"
        )
    return lambda step: jnp.asarray(rates, float)[jnp.sum(jnp.expand_dims(step, -1) >= starts, axis=-1)]


def cycle_ends(num_epochs: float, steps_per_epoch: int, cycles: int, factor: float = 1.0) -> tuple[float, ...]:
    """The steps at which the cycles of `cosine` end, whole numbers if there are several; the last one ends the run.

    The first cycle begins at step 0, and a warm-up is a part of it. Each is `factor` times as long as the one before.

    Raises:
      UserError: one would be shorter than a step.
    """
    total = num_epochs * steps_per_epoch
    if cycles == 1:
        return (total,)
    ends: list[int] = []
    if cycles <= total:
        last = cycles - 1 if factor > 1 else 0  # of the exponents, so that the largest length is 1
        with np.errstate(under="ignore"):
            lengths = np.power(float(factor), np.arange(cycles) - last)
        # Rounded twice, so that an end half-way between two steps does not depend on the number of later cycles.
        ends = [round(end) for end in np.round(np.cumsum(lengths) / lengths.sum() * total, 6).tolist()]
    if not ends or min(np.diff([0, *ends])) < 1:
        raise UserError(
            f"cycles={cycles} is not allowed with cycle_factor={factor:g}: a cycle would be shorter than a step, of "
            f"which the run has {total:g}; choose fewer cycles, or more epochs"
        )
    return tuple(ends)


def _cosine(
    rate: float, final_rate: float, first_steps: Sequence[float], last_steps: Sequence[float]
) -> optax.Schedule:
    lengths = [max(last - first, 1) for first, last in zip(first_steps, last_steps, strict=True)]

    def schedule(step):
        last_step, length = last_steps[0], lengths[0]
        if len(last_steps) > 1:
            cycle = jnp.sum(jnp.expand_dims(step, -1) >= np.array(last_steps[:-1]), axis=-1)
            last_step, length = (jnp.asarray(steps, float)[cycle] for steps in (last_steps, lengths))
        # (1 + cos(pi * done)) / 2 as a sine of the remaining fraction: exact near the end, where the cosine cancels.
        left = jnp.clip((last_step - step) / length, 0.0, 1.0)
        return final_rate + (rate - final_rate) * jnp.sin(0.5 * jnp.pi * left) ** 2

    return schedule


def _inverse_time(rate: float, decay_rate: float) -> optax.Schedule:
    return lambda step: rate / (1.0 + decay_rate * step)


@no_type_check  # pytest checks calls: trees of shapes, of NumPy arrays or of flags have this structure, too
class PlateauState(flax.struct.PyTreeNode):
    """The plateau rule's state between evaluations; all are scalars."""

    scale: Float[Array, ""]  # of the updates: initially 1, multiplied by `factor` at each reduction
    best: Float[Array, ""]  # the best value of the metric
    bad_epochs: Int[Array, ""]  # evaluations since then without improvement
    cooldown: Int[Array, ""]  # remaining evaluations that are not counted


def after_warmup(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """The schedule, after a linear warm-up to the lr that it has at the warm-up's end."""
    if not warmup_steps:
        return schedule

    def warmed_up(step):
        share = jnp.minimum((jnp.asarray(step, float) + 1) / warmup_steps, 1.0)
        return share * schedule(jnp.maximum(step, warmup_steps))

    return warmed_up


def init_plateau(mode: str) -> PlateauState:
    """The state before the first evaluation; `mode` as in `plateau_update`."""
    return PlateauState(
        scale=jnp.ones((), float),
        best=jnp.full((), -_sign(mode) * jnp.inf, float),
        bad_epochs=jnp.zeros((), jnp.int32),
        cooldown=jnp.zeros((), jnp.int32),
    )


def plateau_update(
    state: PlateauState,
    metric: ScalarLike,
    *,
    mode: str,
    factor: float,
    patience: int,
    threshold: float,
    threshold_mode: str,
    cooldown: int,
    min_scale: float,
    learning_rate: float,
) -> PlateauState:
    """The state after an evaluation that gave `metric`: `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    After more than `patience` evaluations in a row without improvement, `scale` is multiplied by `factor`, and the next
    `cooldown` evaluations are not counted. NaN does not count as an improvement.

    Args:
      mode: which metric is better: "max" or "min"
      threshold: smallest change that counts as an improvement: `threshold_mode` "relative" to the best, or "absolute"
      min_scale: the smallest scale, i.e. the smallest lr divided by `learning_rate`
      learning_rate: the lr at scale 1; PyTorch skips reductions that change the lr by less than 1e-8

    Raises:
      UserError: an unknown mode or threshold mode.
    """
    sign = _sign(mode)
    metric = jnp.asarray(metric, state.best.dtype)
    if threshold_mode == "relative":
        bound = state.best * (1.0 + sign * threshold)
    elif threshold_mode == "absolute":
        bound = state.best + sign * threshold
    else:
        raise unknown_name("threshold mode", threshold_mode, ("relative", "absolute"))
    better = sign * metric > sign * bound

    cooling = state.cooldown > 0
    bad_epochs = jnp.where(better | cooling, 0, state.bad_epochs + 1)
    exhausted = bad_epochs > patience

    reduced = jnp.maximum(state.scale * factor, min_scale)
    worthwhile = (state.scale - reduced) * learning_rate > SMALLEST_CHANGE
    return PlateauState(
        scale=jnp.where(exhausted & worthwhile, reduced, state.scale),
        best=jnp.where(better, metric, state.best),
        bad_epochs=jnp.where(exhausted, 0, bad_epochs),
        cooldown=jnp.where(exhausted, cooldown, state.cooldown - cooling),
    )


def _sign(mode: str) -> int:
    check_choice("mode", mode, ("max", "min"))
    return 1 if mode == "max" else -1
