"""A run is a folder: config, metrics, checkpoints, summary and report. Making one, going on with one, loading one."""

import contextlib
import copy
import dataclasses
import fnmatch
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
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp

from inception_jax import (
    data,
    files,
    initialization,
    optimizers,
    registry,
    schedules,
    state,
    steps,
    weights,
    writers,
)
from inception_jax.checkpoints import Checkpoints
from inception_jax.config import CHOICES, Config, check_types, default_config, may_differ, per_process
from inception_jax.data import augment, images
from inception_jax.data.dataset import Dataset
from inception_jax.data.images import check_batch
from inception_jax.errors import UserError, WriteError, unknown_name
from inception_jax.models import create_model, folding
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.weights.names import naming, nearest_options

INFERENCE_TYPES = ("float32", "bfloat16")
logger = logging.getLogger(__name__)


def prepare_folder(folder: Path, config: Config) -> None:
    """Makes the run's folder with its config.json, or checks that it belongs to the same config.

    Raises:
      UserError: the folder cannot be written, or holds a run with another config; the message shows the difference.
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
    """The config that a run has kept. A field that it does not know yet has the value that is the default now.

    Raises:
      UserError: the file cannot be read, or is none that a run has written.
    """

    def thaw(value: Any) -> Any:  # JSON has no tuples
        if isinstance(value, dict):
            return {key: thaw(item) for key, item in value.items()}
        return tuple(map(thaw, value)) if isinstance(value, list) else value

    try:
        content = files.parse_json(path.read_bytes())
        if not isinstance(content, dict) or not {"model", "data", "checkpoint"} <= content.keys():
            raise ValueError(
                "it has no sections model, data and checkpoint"
            )  # other programs' files have that name, too
        config = ml_collections.ConfigDict(_merge(default_config().to_dict(), thaw(content)))
        check_types(config, others=True)
        config.init_from = config.init_from or None  # "" was none, too, in version 0.1.0
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no run's config: {error}") from error


def _merge(default: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    both = default.keys() & kept.keys()
    sections = [key for key in both if isinstance(default[key], dict) and isinstance(kept[key], dict)]
    return default | kept | {key: _merge(default[key], kept[key]) for key in sections}


def config_differences(kept: Config, given: Config) -> list[str]:
    """One phrase for every field that decides what is computed and has two values.

    A field that the kept config does not know yet had the value that is the default now.
    """
    default, old, new = (_flatten(json.loads(config.to_json())) for config in (default_config(), kept, given))
    old = {field: default[field] for field in default.keys() & new.keys()} | old
    given = new.get("compute_dtype")
    if old.get("compute_dtype") == "auto" != given and given == jnp.dtype(dtypes("auto")[0]).name:
        old["compute_dtype"] = new["compute_dtype"]  # recipes that said "auto" name the type now
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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the network is given: how images as stored become its inputs, and what its outputs mean.

    Attributes:
      class_names: in the order of the logits.
      image_shape: (height, width, channels) as stored.
      mean, std: per channel, of pixels scaled to 0..1.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Inputs":
        return cls(**{key: tuple(value) for key, value in values.items()})

    def normalizer(self, normalization: str, dtype: Any) -> Callable[[jax.Array], jax.Array]:
        """uint8 images (batch, height, width, channels) to the network's inputs, of `dtype`."""
        mean, std = np.asarray(self.mean, dtype), np.asarray(self.std, dtype)

        def normalize(images):
            return augment.normalize(augment.to_unit(images, dtype), normalization=normalization, mean=mean, std=std)

        return normalize

    def augmenter(self, strengths: dict[str, Any], normalization: str, dtype: Any) -> steps.Prepare:
        """The same for training, after augmentation: (key, images) -> inputs."""
        mean, std = np.asarray(self.mean, dtype), np.asarray(self.std, dtype)
        elsewhere = {*augment.MIXING, "crop_originals"}  # mixed by `mixer`; cropped when they were read
        if strengths.get("crop_originals"):
            elsewhere.add("random_resized_crop")
        strengths = {name: strength for name, strength in strengths.items() if name not in elsewhere}

        def prepare(key, images):
            images = augment.augment(key, augment.to_unit(images, dtype), **strengths)
            return augment.normalize(images, normalization=normalization, mean=mean, std=std)

        return prepare

    def mixer(self, strengths: dict[str, Any]) -> steps.Mix | None:
        """(key, inputs, labels) -> inputs and targets, mixed by MixUp or CutMix; None where neither is on."""
        alphas = {name: strengths[name] for name in augment.MIXING}
        return partial(augment.mix, num_classes=len(self.class_names), **alphas) if any(alphas.values()) else None


def load_data(config: Config) -> Dataset:
    """The data set that the config names, prepared first where it is not yet."""
    section = config.data
    fields = (
        "directory", "archives", "folder", "classes", "hold_out", "split_seed", "keep", "on_error", "image_size",
        "channels", "resize", "fit", "crop_share", "memory_gib",
    )  # fmt: skip
    return data.load(
        section.name,
        splits={name: spec for name, spec in section.splits.items() if spec},
        pipeline="streaming" if section.augment.crop_originals else section.pipeline,
        **{field: section[field] for field in fields},
    )


def dtypes(compute_dtype: str) -> tuple[Any, Any]:
    """The data types of the computation, and of parameters, images and statistics, for config.compute_dtype.

    "auto" is float32 on CPUs and bfloat16 elsewhere; a run's training decides it better, see `precision`.
    """
    if compute_dtype not in CHOICES["compute_dtype"]:
        raise unknown_name("compute_dtype", compute_dtype, CHOICES["compute_dtype"])
    if compute_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
        return jnp.float64, jnp.float64
    if compute_dtype == "auto":
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(compute_dtype).type, jnp.float32


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network that the config names, with the options that it sets."""
    dtype, param_dtype = dtypes(config.compute_dtype)
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    for option, source in (("num_classes", "the data"), ("dtype", "compute_dtype"), ("param_dtype", "compute_dtype")):
        if option in options:
            raise UserError(f"model.{option} cannot be set: it follows from {source}")
    return create_model(config.model.name, num_classes=num_classes, dtype=dtype, param_dtype=param_dtype, **options)


def build_optimizer(config: Config, steps_per_epoch: int):
    """The Optax chain and its schedule, step -> rate."""
    schedule = schedules.make_schedule(
        config.schedule.name,
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
        **{
            field: config.schedule[field]
            for field in (
                "learning_rate", "warmup_epochs", "every_epochs", "boundaries", "factor", "final_rate", "decay_rate"
            )
        },
    )  # fmt: skip
    options = {key: value for key, value in config.optimizer.items() if key != "name"}
    if config.init_from:
        options |= {
            "trunk": partial(_trunk, head=config.finetune.head),
            "trunk_rate": config.finetune.trunk_rate,
            "frozen_updates": min(round(config.finetune.freeze_epochs * steps_per_epoch), schedules.LARGEST_STEP),
        }
    return optimizers.make_optimizer(config.optimizer.name, schedule, **options), schedule


def _trunk(params: Any, head: tuple[str, ...]) -> Any:
    """A tree of the same structure: True but for the submodules that a pattern of `head` matches."""
    new = {name for name in params if any(fnmatch.fnmatch(name, pattern) for pattern in head)}
    if not new:
        raise UserError(f"finetune.head={head} matches none of the network's submodules: {', '.join(params)}")
    return {name: jax.tree.map(lambda _, name=name: name not in new, node) for name, node in params.items()}


def with_options_of_weights(config: Config, num_classes: int) -> Config:
    """The config with the network's open options set to what the published weights in init_from were trained with."""
    config = copy.deepcopy(config)
    name = config.init_from or ""
    published = weights.PRETRAINED.get(name) or weights.PRETRAINED.get(f"{name}:{config.model.name}")
    if published:
        model = build_model(config, num_classes)
        for option, value in nearest_options(model, naming(model, published.format)).items():
            if config.model.get(option) is None:
                config.model[option] = value
    return config


def with_network_of_weights(config: Config, folder: Path, *, trust_code: bool = False) -> Config:
    """The config with the network of the weights in init_from, where model.name is "" and so leaves it to them.

    With it come its options, data.image_size and data.channels that are not set, and from a run data.normalization.

    Args:
      folder: of the run that is to be trained; if it has begun, what it began with stays.
      trust_code: whether a run's folder may name a network outside the package, as for `load_run`.

    Raises:
      UserError: init_from is not set, or does not say which network's weights it holds.
      UntrustedError: a run's network is code that is not trusted.
    """
    if config.model.name:
        return config
    config = copy.deepcopy(config)
    if (folder / "config.json").is_file():  # the weights may be gone
        kept = read_config(folder / "config.json")
        registry.check_trusted("model", kept.model.name, folder, trust_code)
        image_size, channels = kept.data.image_size, kept.data.channels
        options, normalization = dict(kept.model), kept.data.normalization
    elif not config.init_from:
        raise UserError("the network is that of the weights: give --config.init_from=RUN_OR_FILE, or set model.name")
    elif (files.expand(config.init_from, "init_from") / "config.json").is_file():
        source = files.expand(config.init_from)
        kept, inputs = read_config(source / "config.json"), kept_inputs(source)
        registry.check_trusted("model", kept.model.name, source, trust_code)
        if inputs is None:
            raise UserError(f"{source} has no checkpoint yet")
        image_size, _, channels = inputs.image_shape
        options, normalization = dict(kept.model), kept.data.normalization
    else:
        name, options, preprocessing = weights.find_network(config.init_from)
        options, normalization = {"name": name, **options}, config.data.normalization
        image_size, channels = preprocessing and preprocessing.crop, 3
    for option, value in options.items():
        if config.model.get(option) in (None, ""):
            config.model[option] = value
    config.data.normalization = normalization
    for field, value in (("image_size", image_size), ("channels", channels)):
        if config.data[field] is None:
            config.data[field] = value
    return config


def kept_inputs(folder: Path) -> Inputs | None:
    """The inputs of a run that has a checkpoint already; None where it has not begun."""
    if not (folder / "config.json").is_file():
        return None
    with open_checkpoints(folder, read_config(folder / "config.json"), read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return None if step is None else Inputs.from_json(checkpoints.progress(step)["inputs"])


@dataclasses.dataclass(frozen=True)
class Initial:
    """What a network starts from whose weights come from elsewhere.

    Attributes:
      variables: {"params", "batch_stats"}.
      mean, std: with which the weights' inputs were normalised, as in Inputs; None where nothing says.
      left_out: paths of the layers that are new.
    """

    variables: dict[str, Any]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    left_out: tuple[str, ...]


def load_initial(
    source: str,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    key: jax.Array,
    *,
    trust_code: bool = False,
    own: Config | None = None,
) -> Initial:
    """The weights that config.init_from names, for a network in hand; layers for other classes are drawn anew.

    Args:
      trust_code, own: of a run's folder, as for `load_run`.

    Raises:
      UserError: the weights cannot be had or are not the network's.
    """
    if not (files.expand(source, "init_from") / "config.json").is_file():
        found = weights.init_from(source, model, image_shape=image_shape, key=key)
        known = found.preprocessing
        return Initial(found.variables, known and known.mean, known and known.std, found.left_out)
    other = load_run(source, trust_code=trust_code, own=own)
    zeros = jnp.zeros((1, *image_shape))
    beginning = jax.jit(lambda key: model.init(key, zeros, train=False)).trace(key)
    fresh: dict[tuple[str, ...], Any] = flatten_dict(dict(initialization.evaluate(beginning, key)))
    kept: dict[tuple[str, ...], Any] = flatten_dict(dict(other.variables))
    differing = fresh.keys() ^ kept.keys()
    differing |= {path for path in fresh.keys() & kept.keys() if fresh[path].shape != kept[path].shape}
    classes = len(other.inputs.class_names)
    # Layers whose outputs were the other run's classes are new where ours are others; all else has to agree.
    new = {path for path in differing & fresh.keys() & kept.keys() if kept[path].shape[-1] == classes}
    if differing - new:
        names = sorted("/".join(path) for path in differing - new)
        raise UserError(
            f"{source} holds another network than model.name and its options give: {len(names)} of its arrays or ours "
            f"are missing or have another shape: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
    taken = unflatten_dict({path: value if path in new else kept[path] for path, value in fresh.items()})
    return Initial(
        {name: taken.get(name, {}) for name in ("params", "batch_stats")},
        other.inputs.mean,
        other.inputs.std,
        tuple(sorted({"/".join(path[1:-1]) for path in new})),
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network with what it takes to use it.

    Attributes:
      model: the Linen module; `model.apply(variables, inputs, train=False)` returns Outputs.
      variables: {"params", "batch_stats"}: the best checkpoint's moving average where one is kept.
      config: as the run was started.
      inputs: class names, image shape and normalisation.
      step: the checkpoint's.
      epoch: the same in epochs.
      checkpoint: "best", or "latest" where that was asked for or there is no best one.
      named_streams: from which key its first weights were drawn, see `initial_key`.
      trusts_data: whether its data set may be code from outside the package, see `load_run`.
      fingerprint: of the data that it was trained on, see `Dataset.fingerprint`; None where that is not known.
      engine: what computes logits of uint8 images of the run's own size instead of JAX, see `engines.use`.
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
        """In the order of the logits."""
        return self.inputs.class_names

    @property
    def form(self) -> images.Format:
        """How a picture of any size becomes what the network was trained on.

        Raises:
          UserError: its images are no squares.
        """
        height, width, channels = self.inputs.image_shape
        if height != width:
            raise UserError(f"{self.folder} takes images of {height}x{width} pixels; pictures become squares alone")
        section = self.config.data
        return images.Format(height, channels, section.resize, section.fit, section.crop_share)

    def normalize(self, images: np.ndarray) -> jax.Array:
        """uint8 images (batch, height, width, channels), of any height and width, to the network's inputs.

        Raises:
          UserError: the images are none that the network was trained on; the message says what to do.
        """
        images = check_batch(images, self.inputs.image_shape, any_size=True)
        normalizer = self.inputs.normalizer(self.config.data.normalization, dtypes(self.config.compute_dtype)[1])
        return normalizer(jnp.asarray(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to probabilities (batch, classes). Raises as `normalize`."""
        return np.asarray(jax.nn.softmax(self.logits(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to logits (batch, classes). Raises as `normalize`."""
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
    """The network of a run's folder, at its "best" checkpoint (the latest where none is the best yet) or its "latest".

    Where the run keeps none for being the best (checkpoint.keep_best=0), the best of those that are there stands for
    it, and a warning says so.

    Nothing outside the package that the folder names is imported or called, unless it is trusted, and then only a Linen
    module's class, or a function that makes a network or a data set.

    Args:
      dtype: "float32" or "bfloat16", or JAX's type of that name, for the network to compute in; None: what it was
        trained in, where the config says "auto" what training would use on this machine.
      trust_code: that the network and the data set may be code outside the package, "module:Name": for folders of
        people whom you would let run programs here.
      own: a config from the person who started the program, who thereby trusts the code that it names.

    Raises:
      UserError: the folder holds no run, or no checkpoint of it is whole; or the best one is damaged or gone; or the
        network has no choice of `dtype`.
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
        model = build_model(config, len(inputs.class_names))
        optimizer, _ = build_optimizer(config, progress["steps_per_epoch"])
        template = jax.eval_shape(lambda: new_state(config, model, optimizer, inputs.image_shape))
        try:
            restored, _ = checkpoints.restore(step, template)
        except UserError as error:
            if checkpoint == "latest" or step == checkpoints.latest_step():
                raise
            raise UserError(f"{error}: 'latest' is that of step {checkpoints.latest_step()}") from error
    if dtype is not None:
        with contextlib.suppress(TypeError):  # what is none is named as it was given
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
    """The step of a run's best checkpoint, None where nothing has been watched yet.

    Not just the best one of those that can be read: which it was is known from the latest one's record and, where later
    ones are damaged or gone, from metrics.csv.

    Raises:
      UserError: it is damaged or gone.
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
            if step is None and found == value:  # of a run from before the record named it
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
    """The step of the best weights of a run that has ended, as its summary says; -1 where it does not."""
    with contextlib.suppress(UserError):
        summary = files.read_json(folder / "summary.json")
        best = summary.get("best") if isinstance(summary, dict) else None
        if isinstance(best, dict) and isinstance(best.get("step"), int):
            return best["step"]
    return -1


def initial_key(config: Config, named_streams: bool = True) -> jax.Array:
    """The random key of a run's first weights; `named_streams` is what its record says, False where that has no such
    field: runs of before took the seed itself, and the next one for training."""
    return state.stream(config.seed, "init") if named_streams else jax.random.key(config.seed)


def training_key(config: Config, named_streams: bool = True) -> jax.Array:
    """That of a run's steps, as `initial_key`."""
    return state.stream(config.seed, "train") if named_streams else jax.random.key(config.seed + 1)


def new_state(
    config: Config,
    model: nn.Module,
    optimizer: Any,
    image_shape: tuple[int, int, int],
    key: jax.Array | None = None,
) -> state.TrainState:
    """The state before the first update; `key` is that of a run that begins now unless it is given."""
    return state.create_state(
        initial_key(config) if key is None else key,
        model,
        optimizer,
        image_shape,
        dtype=dtypes(config.compute_dtype)[1],
        plateau_mode=config.schedule.mode,
        with_average=config.average_decay > 0,
    )


def open_checkpoints(folder: Path, config: Config, *, read_only: bool = False) -> Checkpoints:
    """The run's checkpoints, with its rules for what is kept; `read_only` where the run may be going on elsewhere."""
    return Checkpoints(
        folder / "checkpoints",
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
        keep_every_steps=config.checkpoint.keep_every_steps,
        watch=config.evaluate.watch,
        watch_mode=config.evaluate.watch_mode,
        read_only=read_only,
    )
