"""Creates, resumes and loads runs: folders with config, metrics, checkpoints, summary and report."""

import contextlib
import dataclasses
import json
import logging
import math
import operator
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import data, files, registry
from inception_jax.config import Config, check_types, default_config, may_differ, per_process
from inception_jax.data import images
from inception_jax.data.dataset import Dataset
from inception_jax.data.images import check_batch
from inception_jax.errors import UserError, WriteError, unknown_name
from inception_jax.experiment import Experiment, Inputs, dtypes
from inception_jax.models import folding
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.runs import metrics_log as writers
from inception_jax.runs.checkpoints import Checkpoints

INFERENCE_TYPES = ("float32", "bfloat16")
logger = logging.getLogger(__name__)


def prepare_folder(folder: Path, config: Config) -> None:
    """Creates the run's folder with its config.json, or checks that an existing one has the same config.

    Raises:
      UserError: the folder cannot be written, or contains a run with another config; the message shows the difference.
    """
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            differences = config_differences(read_config(path), config)
            if differences:
                raise UserError(
                    f"{folder} holds a run with another config: {'; '.join(differences)}. "
                    "Choose another --workdir, or the same config to go on with that run"
                )
        else:
            files.write_json(path, json.loads(config.to_json()))
    except OSError as error:
        kind = WriteError if files.no_room(error) else UserError
        raise kind(f"cannot write the run's folder {folder}: {error.strerror or error}") from error


def read_config(path: Path) -> Config:
    """Reads the config that a run has saved. A field missing from an older run has the current default.

    Raises:
      UserError: the file cannot be read, or was not written by a run.
    """

    def thaw(value: Any) -> Any:  # JSON has no tuples
        if isinstance(value, dict):
            return {key: thaw(item) for key, item in value.items()}
        return tuple(map(thaw, value)) if isinstance(value, list) else value

    try:
        content = files.parse_json(path.read_bytes())
        if not isinstance(content, dict) or not {"model", "data", "checkpoint"} <= content.keys():
            raise ValueError("it has no sections model, data and checkpoint")  # other programs use this file name, too
        config = ml_collections.ConfigDict(_merge(default_config().to_dict(), thaw(content)))
        check_types(config, others=True)
        config.init_from = config.init_from or None  # in version 0.1.0, "" also meant None
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no run's config: {error}") from error


def _merge(default: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    both = default.keys() & kept.keys()
    sections = [key for key in both if isinstance(default[key], dict) and isinstance(kept[key], dict)]
    return default | kept | {key: _merge(default[key], kept[key]) for key in sections}


def config_differences(kept: Config, given: Config) -> list[str]:
    """One phrase for every field that affects the computation and has two different values.

    A field missing from the saved config had the current default.
    """
    default, old, new = (_flatten(json.loads(config.to_json())) for config in (default_config(), kept, given))
    old = {field: default[field] for field in default.keys() & new.keys()} | old
    given = new.get("compute_dtype")
    if old.get("compute_dtype") == "auto" != given and given == jnp.dtype(dtypes("auto")[0]).name:
        old["compute_dtype"] = new["compute_dtype"]  # recipes that said "auto" now name the type
    return [
        f"{field} was {old.get(field)!r}, now {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not may_differ(field)
    ]


def common_fields(config: Config) -> dict[str, Any]:
    """The fields, as JSON values by full name, that are the same in all processes of a run."""
    fields = _flatten(json.loads(config.to_json()))
    return {field: value for field, value in fields.items() if not per_process(field)}


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def load_data(config: Config) -> Dataset:
    """Loads the data set that the config names, and prepares it first if necessary."""
    return data.load(config.data.name, *data_options(config))


def data_options(config: Config) -> tuple[data.Location, data.Selection, data.Decoding]:
    """The config's section `data` as the arguments of `data.load`."""
    section = config.data
    splits = {name: spec for name, spec in section.splits.items() if spec}
    pipeline = "streaming" if section.augment.crop_originals else section.pipeline
    return (
        data.Location(section.directory, section.archives, section.folder),
        data.Selection(section.classes, section.hold_out, section.split_seed, splits, section.keep, section.on_error),
        data.Decoding(
            image_size=section.image_size,
            channels=section.channels,
            resize=section.resize,
            fit=section.fit,
            crop_share=section.crop_share,
            pipeline=pipeline,
            memory_gib=section.memory_gib,
            pad=section.pad,
        ),
    )


def kept_inputs(folder: Path) -> Inputs | None:
    """The inputs saved by a run; None if it has no checkpoint yet."""
    if not (folder / "config.json").is_file():
        return None
    with open_checkpoints(folder, read_config(folder / "config.json"), read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return None if step is None else Inputs.from_json(checkpoints.progress(step)["inputs"])


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network with everything needed to use it.

    Attributes:
      model: the Linen module; `model.apply(variables, inputs, train=False)` returns Outputs.
      variables: {"params", "batch_stats"}: the best checkpoint's moving average if one is kept.
      config: the config that the run was started with.
      inputs: class names, image shape and normalization.
      step: the checkpoint's step.
      epoch: the step in epochs.
      checkpoint: "best", or "latest" if that was requested or there is no best one.
      named_streams: determines the key from which its initial weights were drawn, see `initial_key`.
      trusts_data: whether its data set may be code from outside the package, see `load_run`.
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
    fingerprint: str | None = None
    engine: Callable[[np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.inputs.image_shape))
        return (
            f"Run({str(self.folder)!r}: {self.config.model.name}, step {self.step}, images of {shape}, "
            f"{len(self.class_names)} classes)"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.inputs.class_names

    @property
    def form(self) -> images.Format:
        """How a picture of any size is converted to an input image.

        Raises:
          UserError: its images are not square.
        """
        height, width, channels = self.inputs.image_shape
        if height != width:
            raise UserError(f"{self.folder} takes images of {height}x{width} pixels; pictures become squares alone")
        section = self.config.data
        return images.Format(height, channels, section.resize, section.fit, section.crop_share, section.pad)

    def normalize(self, images: np.ndarray) -> jax.Array:
        """Converts uint8 images (batch, height, width, channels), of any height and width, to the network's inputs.

        Raises:
          UserError: the images do not fit the network; the message says what to do.
        """
        images = check_batch(images, self.inputs.image_shape, any_size=True)
        normalizer = self.inputs.normalizer(self.config.data.normalization, dtypes(self.config.compute_dtype)[1])
        return normalizer(jnp.asarray(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to probabilities (batch, classes). Raises as `normalize`."""
        return np.asarray(jax.nn.softmax(self.logits(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Maps uint8 images (batch, height, width, channels) to logits (batch, classes). Raises as `normalize`."""
        if self.engine is not None:
            images = check_batch(images, self.inputs.image_shape, any_size=True)
            if images.shape[1:] == self.inputs.image_shape:
                return self.engine(np.ascontiguousarray(images))
        model, variables = self._for_inference
        return np.asarray(folding.logits(model, variables, self.normalize(images)), np.float32)

    @cached_property
    def _for_inference(self) -> tuple[nn.Module, dict[str, Any]]:
        return fold_model(self.model), jax.jit(partial(inference_variables, self.model))(self.variables)


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    dtype: Any = None,
    trust_code: bool = False,
    own: Config | None = None,
) -> Run:
    """Loads a run's network from its "best" checkpoint (the latest if there is no best one yet) or its "latest" one.

    If the run does not keep the best checkpoint (checkpoint.keep_best=0), the best of the existing ones is used, with a
    warning.

    Code outside the package that the folder names is not imported or called unless it is trusted, and then only a Linen
    module class, or a function that creates a network or a data set.

    Args:
      dtype: "float32" or "bfloat16", or JAX's type of that name, for the network to compute in; None: the type it was
        trained in or, if the config says "auto", what training would use on this machine.
      trust_code: whether the network and the data set may be code outside the package, "module:Name". Only for folders
        from people whom you would let run programs here.
      own: a config from the user who started the program, who thereby trusts the code that it names.

    Raises:
      UserError: the folder does not contain a run or an intact checkpoint; or the best one is damaged or missing; or
        the network cannot compute in `dtype`.
      UntrustedError: its network is code that is not trusted.
    """
    folder = files.expand(folder, "the run's folder")
    if checkpoint not in ("best", "latest"):
        raise UserError(f"checkpoint={checkpoint!r} is not allowed: choose 'best' or 'latest'")
    config = read_config(folder / "config.json")
    trusts_model, trusts_data = (
        trust_code or (own is not None and own[section].name == config[section].name) for section in ("model", "data")
    )
    registry.check_trusted("model", config.model.name, folder, trusts_model)
    with open_checkpoints(folder, config, read_only=True) as checkpoints:
        step = _best_step(folder, config, checkpoints) if checkpoint == "best" else None
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{folder} has no checkpoint yet")
        which = "best" if checkpoint == "best" and step == checkpoints.best_step() else "latest"
        progress = checkpoints.progress(step)
        inputs = Inputs.from_json(progress["inputs"])
        experiment = Experiment.of(config, inputs, progress["steps_per_epoch"])
        model, template = experiment.model, jax.eval_shape(experiment.initial_state)
        try:
            restored, _ = checkpoints.restore(step, template)
        except UserError as error:
            if checkpoint == "latest" or step == checkpoints.latest_step():
                raise
            raise UserError(f"{error}: 'latest' is that of step {checkpoints.latest_step()}") from error
    if dtype is not None:
        with contextlib.suppress(TypeError):  # what is not a type is reported as given
            dtype = jnp.dtype(dtype).name
        if dtype not in INFERENCE_TYPES:
            raise unknown_name("dtype", str(dtype), INFERENCE_TYPES)
        if not hasattr(model, "dtype"):
            raise UserError(f"dtype={dtype} cannot be had: {config.model.name} has no field dtype")
        model = model.clone(dtype=jnp.dtype(dtype).type)
    epoch, named_streams = step / progress["steps_per_epoch"], progress.get("named_streams", False)
    fingerprint = progress.get("fingerprint")
    return Run(
        folder, config, model, restored.variables, inputs, step, epoch, which, named_streams, trusts_data, fingerprint
    )


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
    gone.setdefault(_finished_best(folder), "is not there any more")
    for row in writers.read_whole_rows(folder / "metrics.csv")[0]:
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
    what = "the best checkpoint" if step is None else f"the best checkpoint, that of step {step}"
    why = "is damaged or not there any more" if step is None else gone.get(step, "is not there any more")
    lost = f"{what} ({metric} {value:g}), {why}"
    if config.checkpoint.keep_best:
        raise UserError(f"{folder}: {lost}. The latest one is that of step {latest}: choose checkpoint 'latest' for it")
    there = latest if there is None else there
    of_its_own = "" if own is None else f" ({metric} {own:g})"
    logger.warning("%s: %s; keep_best=0. That of step %d%s stands for it", folder, lost, there, of_its_own)
    return there


def _finished_best(folder: Path) -> int:
    """The step of the best weights according to a finished run's summary; -1 if it has none."""
    with contextlib.suppress(UserError):
        summary = files.read_json(folder / "summary.json")
        best = summary.get("best") if isinstance(summary, dict) else None
        if isinstance(best, dict) and isinstance(best.get("step"), int):
            return best["step"]
    return -1


def open_checkpoints(folder: Path, config: Config, *, read_only: bool = False) -> Checkpoints:
    """Opens the run's checkpoints with its retention rules; `read_only` if the run may be training elsewhere."""
    return Checkpoints(
        folder / "checkpoints",
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
        keep_every_steps=config.checkpoint.keep_every_steps,
        watch=config.evaluate.watch,
        watch_mode=config.evaluate.watch_mode,
        read_only=read_only,
    )
