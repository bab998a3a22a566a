"""A trained network from a run's folder."""

import contextlib
import dataclasses
import logging
import math
import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from clu.metrics import Metric
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import files, registry
from inception_jax.config import Config
from inception_jax.data.transform import Transform
from inception_jax.data.words import shown_names
from inception_jax.errors import UserError, unknown_name
from inception_jax.experiment import Inputs, build_model, cycle_steps, dtypes, initial_key, own_parts, variables_of
from inception_jax.inference.predictor import NetworkPredictor
from inception_jax.runs import metrics_log
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.runs.folder import open_checkpoints, read_config
from inception_jax.steps import extensions
from inception_jax.text import printable

INFERENCE_TYPES = ("float32", "bfloat16")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run(NetworkPredictor):
    """A trained network with everything needed to use it.

    Its methods also take arrays of other heights and widths than in training.

    Attributes:
      model: the Linen module; `model.apply(variables, inputs, train=False)` returns Outputs.
      variables: {"params", "batch_stats"}: the best checkpoint's moving average if one is kept.
      config: the config that the run was started with.
      inputs: class names, image shape and normalization.
      step: the checkpoint's step.
      epoch: the step in epochs.
      checkpoint: "best"; "latest" if that was requested or there is no best one; "snapshot" if its step was requested.
      named_streams: determines the key from which its initial weights were drawn, see `initial_key`.
      trusts_data: whether its data set may be code from outside the package, see `load_run`.
      trusts_parts: the same of its metrics and augmentation.
      fingerprint: fingerprint of its training data, see `Dataset.fingerprint`; None if unknown.
      engine: computes logits of uint8 images of the run's own size instead of JAX, see `engines.use`.
    """

    folder: Path
    config: Config
    model: nn.Module
    variables: dict[str, Any]
    inputs: Inputs
    step: int
    epoch: float = math.nan
    checkpoint: str = "latest"
    named_streams: bool = True
    trusts_data: bool = False
    trusts_parts: bool = False
    fingerprint: str | None = None
    engine: Callable[[np.ndarray], np.ndarray] | None = None
    any_size: ClassVar[bool] = True

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.inputs.image_shape))
        return (
            f"Run({str(self.folder)!r}: {self.config.model.name}, step {self.step}, images of {shape}, "
            f"{len(self.class_names)} classes)"
        )

    @property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] (never assigned)
        """The names of the classes for people, in the order of the logits; `inputs.class_names` are the folders'."""
        return shown_names(self.inputs.class_names, self.inputs.words)

    @property
    def transform(self) -> Transform:
        """How a picture of any size becomes an input."""
        return self.inputs.transform(self.config.data)

    @property
    def input_dtype(self) -> Any:
        return dtypes(self.config.compute_dtype)[1]

    def own_metrics(self) -> dict[str, type[Metric]]:
        """Its metrics from outside the package, by name; none, with a warning, if their code is not trusted.

        Raises:
          UserError: they cannot be imported.
        """
        names = tuple(map(str, self.config.metrics))  # the file may be from somebody else, with anything in it
        given = any(name.endswith(registry.GIVEN) for name in names)
        if names and (given or not self.trusts_parts):
            why = "they were given to fit as objects" if given else "add --trust-code, in Python trust_code=True"
            said = ", ".join(map(printable, names))
            logger.warning("%s: evaluated without its own metrics, %s: %s", self.folder, said, why)
            return {}
        return extensions.metric_classes(own_parts(extensions.METRIC, "metrics", self.config, {}))

    def compute(self, images: np.ndarray) -> np.ndarray:
        if self.engine is not None and images.shape[1:] == self.inputs.image_shape:
            return self.engine(np.ascontiguousarray(images))
        return super().compute(images)

    def _class_number(self, name: str) -> int:
        folders = self.inputs.class_names
        return folders.index(name) if name in folders else super()._class_number(name)


def load_run(
    folder: str | Path,
    checkpoint: str | int = "best",
    *,
    dtype: Any = None,
    trust_code: bool = False,
    own: Config | None = None,
) -> Run:
    """Loads a run's network from its "best" checkpoint (the latest if there is no best one yet), its "latest" one, or
    that of a step, such as one of `snapshot_steps`.

    If the run does not keep the best checkpoint (checkpoint.keep_best=0), the best of the existing ones is used, with a
    warning.

    Code outside the package that the folder names is not imported or called unless it is trusted, and then only a Linen
    module class, or a function that creates a network or a data set.

    Args:
      dtype: "float32" or "bfloat16", or JAX's type of that name, for the network to compute in; None: the type it was
        trained in or, if the config says "auto", what training would use on this machine.
      trust_code: whether the network, the data set, the metrics and the augmentation may be code outside the package,
        "module:Name". Only for folders from people whom you would let run programs here. Loss, optimizer and schedule
        are not needed and never imported.
      own: a config from the user who started the program, who thereby trusts the code that it names.

    Raises:
      UserError: the folder does not contain a run or an intact checkpoint; or the best one is damaged or missing; or
        the network cannot compute in `dtype`.
      UntrustedError: its network is code that is not trusted.
    """
    folder = files.expand(folder, "the run's folder")
    if isinstance(checkpoint, str) and checkpoint not in ("best", "latest"):
        raise UserError(f"checkpoint={checkpoint!r} is not allowed: choose 'best' or 'latest'")
    config = read_config(folder / "config.json")
    trusts_model, trusts_data = (
        trust_code or (own is not None and own[section].name == config[section].name) for section in ("model", "data")
    )
    trusts_parts = trust_code or (own is not None and _parts(own) == _parts(config))
    registry.check_trusted("model", config.model.name, folder, trusts_model)
    with open_checkpoints(folder, config, read_only=True) as checkpoints:
        step = checkpoint if isinstance(checkpoint, int) else None
        step = _best_step(folder, config, checkpoints) if checkpoint == "best" else step
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{folder} has no checkpoint yet")
        which = "best" if checkpoint == "best" and step == checkpoints.best_step() else "latest"
        which = "snapshot" if isinstance(checkpoint, int) else which
        progress = checkpoints.progress(step)
        inputs = Inputs.from_json(progress["inputs"])
        model = build_model(config, len(inputs.class_names))
        template = jax.eval_shape(partial(variables_of, config, model, inputs), initial_key(config))
        variables = _restored_variables(config, template, checkpoints, step, checkpoint)
    model = model if dtype is None else _computing_in(dtype, model, config.model.name)
    epoch, named_streams = step / progress["steps_per_epoch"], progress.get("named_streams", False)
    fingerprint = progress.get("fingerprint")
    run = Run(folder, config, model, variables, inputs, step, epoch, which, named_streams, trusts_data, trusts_parts)
    return dataclasses.replace(run, fingerprint=fingerprint)


def _parts(config: Config) -> list[Any]:
    """The metrics and the augmentation from outside the package that a config names."""
    return [config.get("metrics"), config.data.augment.get("before"), config.data.augment.get("after")]


def snapshot_steps(folder: str | Path, *, trust_code: bool = False) -> list[int]:
    """The steps at which cycles of a run's schedule have ended, whose checkpoints are kept, for `load_run`.

    Raises:
      UserError: the folder does not contain a run; its schedule has no cycles, or none has ended yet; or one of the
        checkpoints is damaged or missing.
      UntrustedError: its network is code that is not trusted.
    """
    folder = files.expand(folder, "the run's folder")
    config = read_config(folder / "config.json")
    registry.check_trusted("model", config.model.name, folder, trust_code)
    with open_checkpoints(folder, config, read_only=True) as checkpoints:
        latest, there, gone = checkpoints.latest_step(), checkpoints.steps(), checkpoints.lost()
        if latest is None:
            raise UserError(f"{folder} has no checkpoint yet")
        progress = checkpoints.progress(latest)
    snapshots = cycle_steps(config, progress["steps_per_epoch"])
    if not snapshots:
        raise UserError(f"{folder} has no snapshots: they need schedule.name='cosine' with several schedule.cycles")
    ended = [step for step in snapshots if step <= latest]
    if not ended:
        raise UserError(f"{folder} has no snapshots yet: its first cycle ends at step {snapshots[0]}")
    for step in ended:
        if step not in there:
            raise UserError(f"{folder}: the checkpoint of step {step} {gone.get(step, 'is missing')}")
    return ended


def _restored_variables(
    config: Config, template: dict[str, Any], checkpoints: Checkpoints, step: int, checkpoint: str | int
) -> dict[str, Any]:
    """The moving average of the variables if one is kept, else the variables."""
    averaged = config.average_decay > 0
    try:
        restored = checkpoints.restore_part(step, {"average": template} if averaged else template)
        return restored["average"] if averaged else restored
    except UserError as error:
        if checkpoint != "best" or step == checkpoints.latest_step():
            raise
        raise UserError(f"{error}: choose checkpoint 'latest' for step {checkpoints.latest_step()}") from error


def _computing_in(dtype: Any, model: nn.Module, name: str) -> nn.Module:
    """The network that computes in another type, see `load_run`."""
    with contextlib.suppress(TypeError):  # what is not a type is reported as given
        dtype = jnp.dtype(dtype).name
    if dtype not in INFERENCE_TYPES:
        raise unknown_name("dtype", str(dtype), INFERENCE_TYPES)
    if not hasattr(model, "dtype"):
        raise UserError(f"dtype={dtype} is not supported: {name} has no field dtype")
    return model.clone(dtype=jnp.dtype(dtype).type)


def _best_step(folder: Path, config: Config, checkpoints: Checkpoints) -> int | None:
    """The step of a run's best checkpoint, None if no metric has been watched yet.

    Not just the best readable one: which one is best is known from the latest one's record and, if later ones are
    damaged or missing, from metrics.csv.

    Raises:
      UserError: it is damaged or missing.
    """
    latest, metric = checkpoints.latest_step(), config.evaluate.watch
    if latest is None:
        return None
    record = checkpoints.progress(latest)
    step, value = record.get("best_step"), record.get("best_value")
    better = operator.gt if config.evaluate.watch_mode == "max" else operator.lt
    gone = checkpoints.lost()
    gone.setdefault(_finished_best(folder), "is missing")
    for row in metrics_log.read_whole_rows(folder / "metrics.csv")[0]:
        row_step, found = int(row["step"]), row.get(metric, math.nan)
        if row_step <= latest:
            if step is None and found == value:  # from an earlier version, whose record lacks it
                step = row_step
        elif row_step in gone and math.isfinite(found) and (value is None or better(found, value)):
            step, value = row_step, found
    there = checkpoints.best_step()
    own = None if there is None else checkpoints.watched(there)
    if value is None or (step is None and own == value):
        return there
    if step is not None and checkpoints.watched(step) == value:
        return step
    what = "the best checkpoint" if step is None else f"the best checkpoint, step {step}"
    why = "is damaged or missing" if step is None else gone.get(step, "is missing")
    lost = f"{what} ({metric} {value:g}), {why}"
    if config.checkpoint.keep_best:
        raise UserError(f"{folder}: {lost}. Choose checkpoint 'latest' for step {latest}")
    there = latest if there is None else there
    of_its_own = "" if own is None else f" ({metric} {own:g})"
    logger.warning("%s: %s; keep_best=0. Using step %d%s instead", folder, lost, there, of_its_own)
    return there


def _finished_best(folder: Path) -> int:
    """The step of the best weights according to a finished run's summary; -1 if it has none."""
    with contextlib.suppress(UserError):
        summary = files.read_json(folder / "summary.json")
        best = summary.get("best") if isinstance(summary, dict) else None
        if isinstance(best, dict) and isinstance(best.get("step"), int):
            return best["step"]
    return -1
