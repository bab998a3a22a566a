"""The learning-rate range test: a short training in which the rate rises until the loss does."""

import copy
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from inception_jax import process
from inception_jax.config import Config
from inception_jax.data import order
from inception_jax.data.dataset import Dataset
from inception_jax.distributed import multihost, sharding
from inception_jax.errors import UserError
from inception_jax.experiment import build_optimizer, initial_key, training_key
from inception_jax.inspection import drawing
from inception_jax.runs.dataset import Given, given_data, load_data
from inception_jax.steps import initialization
from inception_jax.train import start
from inception_jax.train.batches import training_batches
from inception_jax.train.precision import types_for
from inception_jax.train.training import ready

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
FEWEST_STEPS = 10
SMOOTHING = 0.9  # decay of the moving average of the losses
BELOW_MINIMUM = 0.1  # the suggestion as a share of the rate at which the loss is lowest
TOO_HIGH = 4.0  # times the lowest smoothed loss: the test ends


@dataclasses.dataclass(frozen=True, repr=False)
class RateTest:
    """The result of a learning-rate range test.

    Attributes:
      rates: the learning rate of each step, rising by a constant factor.
      losses: the training loss of each step's batch.
    """

    rates: Float[np.ndarray, " steps"]
    losses: Float[np.ndarray, " steps"]

    @property
    def smoothed(self) -> Float[np.ndarray, " steps"]:
        """The moving average of the losses, corrected for its start."""
        averages, average = [], 0.0
        for number, loss in enumerate(self.losses, 1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            averages.append(average / (1 - SMOOTHING**number))
        return np.array(averages)

    @property
    def suggestion(self) -> float:
        """The rate of the test nearest to a tenth of that at which the smoothed loss is lowest: fastai's `minimum`.

        At the minimum updates begin to undo what was learned, whatever was learned until then. Rates lower on the
        curve, such as where it is steepest or half-way down (fastai's `steep` and `valley`), depend on how much a
        hundred steps can teach, and are too low for short trainings.
        """
        best = self.rates[self.smoothed.argmin()]
        return float(self.rates[np.abs(np.log(self.rates / (BELOW_MINIMUM * best))).argmin()])

    def __repr__(self) -> str:
        return (
            f"RateTest({len(self.rates)} steps, rates {self.rates[0]:.3g} to {self.rates[-1]:.3g}, "
            f"suggestion {self.suggestion:.3g})"
        )

    def _repr_png_(self) -> bytes:
        return drawing.png(self.draw())

    @drawing.style()
    def draw(self) -> Any:
        """The losses over the rates, on a logarithmic axis, as a Matplotlib figure; the suggestion is marked."""
        figure, axes = drawing.new_figure(*drawing.SIZE)
        axes.plot(self.rates, self.losses, color=drawing.color("ink"), alpha=0.3, label="loss of each batch")
        axes.plot(self.rates, self.smoothed, color=drawing.color("blue"), label="moving average")
        axes.axvline(
            self.suggestion, color=drawing.color("orange"), ls="--", label=f"suggestion: {self.suggestion:.3g}"
        )
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        lowest = float(self.smoothed.min())
        axes.set_ylim(
            min(0.9 * lowest, float(self.losses.min())), max(TOO_HIGH * lowest / 2, float(self.losses[0]) * 1.2)
        )
        axes.legend(frameon=False)
        return figure

    def save(self, path: str | Path) -> None:
        """Saves the chart as .png, .pdf or .svg.

        Raises:
          UserError: another suffix.
          WriteError: the file cannot be written.
        """
        path = Path(path)
        drawing.check_file(path)
        drawing.save_figure(self.draw(), path)


def find_learning_rate(
    config: Config,
    train: Given | None = None,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
    trust_code: bool = False,
) -> RateTest:
    """Trains for some steps, each with a higher learning rate, and returns the losses (Smith 2017, section 3.3).

    Network, data, augmentation, optimizer and batch size are those of `config`; its schedule is not used. The test ends
    early when the loss has risen to four times its lowest value. Nothing is written.

    Args:
      train: (images uint8 (n, height, width, channels), labels integer (n,)) or a data source, instead of the
        config's data.
      lowest, highest: the first and the last rate.
      steps: number of updates; the training split may be repeated.
      trust_code: as for `train_and_evaluate`.

    Raises:
      UserError: as in `train_and_evaluate`; or fewer than 10 steps, or rates that do not rise.
    """
    if steps < FEWEST_STEPS:
        raise UserError(f"steps={steps} is not allowed: it must be at least {FEWEST_STEPS}")
    if not 0 < lowest < highest < math.inf:
        raise UserError(f"lowest={lowest:g} and highest={highest:g} are not allowed: the rate must rise, from above 0")
    if multihost.count() > 1:
        raise UserError("a learning rate is searched for by one process")
    config = copy.deepcopy(config)
    config.evaluate.splits = config.evaluate.final_splits = ()
    config.schedule.name = "constant"  # others may need an evaluation, or more steps
    dataset = None if train is None else given_data(config, {"train": train})
    if dataset is not None:
        config.data.name = dataset.name
    with tempfile.TemporaryDirectory() as folder, process.log_in_notebook():
        config = ready(config, Path(folder), trust_code)
        dataset = dataset or load_data(config)
        rates = np.geomspace(lowest, highest, steps)
        with types_for(config, Path(folder)):
            losses = _losses(config, Path(folder), dataset, rates, trust_code)
    return RateTest(rates[: len(losses)], np.array(losses))


def _losses(config: Config, folder: Path, dataset: Dataset, rates: np.ndarray, trust_code: bool) -> list[float]:
    """The loss of each step, up to the last one before it is too high or not finite."""
    per_epoch = order.steps_per_epoch(len(dataset.splits["train"]), config.batch_size)
    config.num_epochs = max(1, math.ceil(len(rates) / per_epoch))
    config.schedule.warmup_epochs = 0.0
    begun, initial = start.prepare(config, folder, dataset, trust_code)
    start.log_what(begun, dataset)
    table = rates.astype(begun.experiment.image_dtype)
    optimizer, schedule = build_optimizer(begun.experiment.config, per_epoch, lambda step: jnp.asarray(table)[step])
    experiment = dataclasses.replace(begun.experiment, optimizer=optimizer, schedule=schedule)
    everywhere = NamedSharding(begun.mesh, PartitionSpec())
    step = jax.jit(
        experiment.train_step,
        donate_argnames="state",
        out_shardings=everywhere,
        compiler_options=experiment.compiler_options,
    )
    key = initial_key(experiment.config)
    beginning = jax.jit(experiment.initial_state, out_shardings=everywhere).trace(key)
    state = initialization.evaluate(beginning, key)
    if initial is not None:
        state = state.start_from(initial.variables)
    state = sharding.own(state, begun.mesh)
    losses: list[float] = []
    for images, labels in training_batches(experiment, dataset, begun.mesh, 0):
        state, loss = step(state, images, labels, training_key(experiment.config))
        if not math.isfinite(float(loss)):
            break
        losses.append(float(loss))
        smoothed = RateTest(rates, np.array(losses)).smoothed
        if len(losses) == len(rates) or (len(losses) >= FEWEST_STEPS and smoothed[-1] > TOO_HIGH * smoothed.min()):
            break
    if len(losses) < FEWEST_STEPS:
        raise UserError(
            f"the loss became NaN or infinite at a learning rate of {rates[len(losses)]:.3g}, after {len(losses)} "
            "steps: choose a lower one to start from"
        )
    return losses
