"""A run is a folder: config, metrics, checkpoints, summary and report. Making one, going on with one, loading one."""

import copy
import dataclasses
import fnmatch
import json
import os
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

from inception_jax import data, optimizers, schedules, state, steps, weights
from inception_jax.checkpoints import Checkpoints
from inception_jax.config import Config, check_types, default_config
from inception_jax.data import augment, images
from inception_jax.data.dataset import Dataset
from inception_jax.data.resident import whole_file
from inception_jax.errors import UserError, WriteError
from inception_jax.models import create_model
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.weights.names import naming, nearest_options

# Where things are, how they are shown and what is done when something fails may differ when a run goes on; what is
# computed may not.
MAY_DIFFER = (
    "data.directory", "data.archives", "data.folder", "data.pipeline", "data.memory_gib", "data.num_workers",
    "num_devices", "profile", "log.", "checkpoint.", "nonfinite.",
)  # fmt: skip


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
            write_json(path, json.loads(config.to_json()))
    except OSError as error:
        raise UserError(f"cannot write the run's folder {folder}: {error.strerror or error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file of the run whole or not at all: a kill or a full disk leaves what was there before.

    Raises:
      WriteError: it could not be written.
    """
    try:
        with whole_file(path) as new, new.open("w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the name must not outlive the content when the power fails
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


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
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"model", "data", "checkpoint"} <= content.keys():
            raise ValueError(
                "it has no sections model, data and checkpoint"
            )  # other programs' files have that name, too
        config = ml_collections.ConfigDict(_merge(default_config().to_dict(), thaw(content)))
        check_types(config, others=True)
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
    return [
        f"{field} was {old.get(field)!r}, now {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not field.startswith(MAY_DIFFER)
    ]


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
    """The data types of the computation, and of parameters, images and statistics, for config.compute_dtype."""
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


def with_network_of_weights(config: Config, folder: Path) -> Config:
    """The config with the network of the weights in init_from, where model.name is "" and so leaves it to them.

    With it come its options, data.image_size and data.channels that are not set, and from a run data.normalization.

    Args:
      folder: of the run that is to be trained; if it has begun, what it began with stays.

    Raises:
      UserError: init_from is not set, or does not say which network's weights it holds.
    """
    if config.model.name:
        return config
    config = copy.deepcopy(config)
    if (folder / "config.json").is_file():  # the weights may be gone
        kept = read_config(folder / "config.json")
        image_size, channels = kept.data.image_size, kept.data.channels
        options, normalization = dict(kept.model), kept.data.normalization
    elif not config.init_from:
        raise UserError("the network is that of the weights: give --config.init_from=RUN_OR_FILE, or set model.name")
    elif Path(config.init_from, "config.json").is_file():
        source = Path(config.init_from)
        kept, inputs = read_config(source / "config.json"), kept_inputs(source)
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


def load_initial(source: str, model: nn.Module, image_shape: tuple[int, int, int], key: jax.Array) -> Initial:
    """The weights that config.init_from names, for a network in hand; layers for other classes are drawn anew.

    Raises:
      UserError: the weights cannot be had or are not the network's.
    """
    if not Path(source, "config.json").is_file():
        found = weights.init_from(source, model, image_shape=image_shape, key=key)
        known = found.preprocessing
        return Initial(found.variables, known and known.mean, known and known.std, found.left_out)
    other = load_run(source)
    zeros = jnp.zeros((1, *image_shape))
    draw = jax.jit(partial(model.init, train=False), compiler_options=state.INIT_COMPILER_OPTIONS)
    fresh: dict[tuple[str, ...], Any] = flatten_dict(dict(draw(key, zeros)))
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
    """

    folder: Path
    config: Config
    model: nn.Module
    variables: dict[str, Any]
    inputs: Inputs
    step: int

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
        """uint8 images (batch, height, width, channels) to the network's inputs."""
        normalizer = self.inputs.normalizer(self.config.data.normalization, dtypes(self.config.compute_dtype)[1])
        return normalizer(jnp.asarray(images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to probabilities (batch, classes)."""
        return np.asarray(jax.nn.softmax(self.logits(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to logits (batch, classes)."""
        model, variables = self._for_inference
        return np.asarray(_logits(variables, self.normalize(images), model), np.float32)

    @cached_property
    def _for_inference(self) -> tuple[nn.Module, dict[str, Any]]:
        return fold_model(self.model), jax.jit(partial(inference_variables, self.model))(self.variables)


@partial(jax.jit, static_argnames="model")  # compiled once for a network, not at every call
def _logits(variables: dict[str, Any], inputs: jax.Array, model: nn.Module) -> jax.Array:
    return state.as_outputs(model.apply(variables, inputs, train=False)).logits


def load_run(folder: str | Path, checkpoint: str = "best") -> Run:
    """The network of a run's folder, at its "best" checkpoint (the latest where none is the best yet) or its "latest".

    Raises:
      UserError: the folder holds no run, or no checkpoint of it is whole.
    """
    folder = Path(folder)
    if checkpoint not in ("best", "latest"):
        raise UserError(f"checkpoint={checkpoint!r} is not allowed: choose 'best' or 'latest'")
    config = read_config(folder / "config.json")
    with open_checkpoints(folder, config, read_only=True) as checkpoints:
        step = checkpoints.best_step() if checkpoint == "best" else None
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{folder} has no checkpoint yet")
        progress = checkpoints.progress(step)
        inputs = Inputs.from_json(progress["inputs"])
        model = build_model(config, len(inputs.class_names))
        optimizer, _ = build_optimizer(config, progress["steps_per_epoch"])
        template = jax.eval_shape(lambda: new_state(config, model, optimizer, inputs.image_shape))
        restored, _ = checkpoints.restore(step, template)
    return Run(folder, config, model, restored.variables, inputs, step)


def new_state(
    config: Config,
    model: nn.Module,
    optimizer: Any,
    image_shape: tuple[int, int, int],
    key: jax.Array | None = None,
) -> state.TrainState:
    """The state before the first update; `key` is the config's seed's unless it is given."""
    return state.create_state(
        jax.random.key(config.seed) if key is None else key,
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
