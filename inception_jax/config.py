"""Every field of an experiment, once, with its unit and its meaning.

A file under `configs/` starts from `default_config()` and sets what differs; the command line overrides any
field (`--config.schedule.learning_rate=0.05`). Durations are epochs of the training split unless the name
says steps. `placeholder` fields are unset: the network's or the data set's own default holds.
"""

import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

import ml_collections
from ml_collections.config_dict import placeholder

from inception_jax.errors import UserError, unknown_name

logger = logging.getLogger(__name__)

Config: TypeAlias = Any  # a ml_collections.ConfigDict: its fields have no static types

CHOICES = {
    "compute_dtype": ("auto", "float32", "bfloat16", "float64"),
    "data.fit": ("squash", "crop"),
    "data.keep": ("all", "color", "grayscale"),
    "data.normalization": ("none", "unit", "mean", "mean_std", "per_image"),
    "data.on_error": ("leave_out", "error"),
    "data.pipeline": ("auto", "memory", "streaming"),
    "data.resize": ("bilinear", "bicubic"),
    "optimizer.name": ("sgd", "adam", "adamw", "rmsprop", "rmsprop_tensorflow"),
    "optimizer.weight_decay_mode": ("coupled", "decoupled"),
    "schedule.name": ("constant", "step", "plateau", "cosine", "inverse_time"),
    "schedule.mode": ("max", "min"),
    "schedule.threshold_mode": ("relative", "absolute"),
    "evaluate.watch_mode": ("max", "min"),
    "log.progress": ("auto", "bar", "lines"),
}


# What a field's type is called in messages.
KINDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    tuple: "values with commas between them",
}  # fmt: skip
# Steps and counts are int32, rates and strengths float32 inside the jitted step: 0, and what neither overflows nor
# vanishes there. Seeds are the exception.
LARGEST_INT = 2**31 - 1
SMALLEST_FLOAT, LARGEST_FLOAT = 1.2e-38, 3.4e38
SEEDS = ("seed", "data.split_seed")
PATHS = ("init_from", "data.archives", "data.directory", "data.folder")


def _numbers(value: Any) -> bool:
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def _names(value: Any) -> bool:
    return all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _ascending(value: Any) -> bool:
    return len(value) == 2 and _numbers(value) and 0 < value[0] <= value[1]


LIMITS = (
    ("at least 1", lambda x: x >= 1, (
        "batch_size", "accumulation_steps", "num_epochs", "evaluate.every_epochs", "checkpoint.keep_latest",
    )),
    ("0 or more", lambda x: x >= 0, (
        "num_devices", "checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep_best",
        "checkpoint.keep_every_steps", "data.augment.brightness", "data.augment.contrast", "data.augment.cutmix",
        "data.augment.cutout",
        "data.augment.mixup", "data.augment.pad_and_crop", "data.augment.saturation", "data.memory_gib",
        "evaluate.batch_size", "evaluate.early_stopping_patience", "evaluate.first_epoch", "evaluate.stop_at",
        "finetune.freeze_epochs", "finetune.trunk_rate", "log.every_seconds", "log.watchdog_minutes",
        "loss.aux_weight", "nonfinite.retries",
        "optimizer.clip_norm", "optimizer.weight_decay", "schedule.cooldown", "schedule.decay_rate",
        "schedule.final_rate", "schedule.learning_rate", "schedule.min_rate", "schedule.patience", "schedule.threshold",
        "schedule.warmup_epochs",
    )),
    ("0 or more, or unset", lambda x: x is None or x >= 0, ("data.hold_out",)),
    ("more than 0", lambda x: x > 0, ("optimizer.epsilon", "schedule.every_epochs", "schedule.factor")),
    ("more than 0 and less than 1", lambda x: 0 < x < 1, ("nonfinite.factor",)),
    ("more than 0 and at most 1", lambda x: 0 < x <= 1, ("data.crop_share",)),
    ("from 0 to 1", lambda x: 0 <= x <= 1, (
        "data.augment.horizontal_flip", "data.augment.random_erasing", "loss.label_smoothing",
    )),
    ("from 0 to 14", lambda x: 0 <= x <= 14, ("data.augment.randaugment_ops",)),
    ("from 0 to 30", lambda x: 0 <= x <= 30, ("data.augment.randaugment_magnitude",)),
    ("from 0 to 360", lambda x: 0 <= x <= 360, ("data.augment.rotation",)),
    ("from 0 to 1024", lambda x: 0 <= x <= 1024, ("data.num_workers",)),
    ("from 0 to 4294967295", lambda x: 0 <= x < 2**32, SEEDS),
    ("0 or more and less than 1", lambda x: 0 <= x < 1, ("average_decay", "data.augment.zoom")),
    ("0 or more and less than 1, or unset", lambda x: x is None or 0 <= x < 1, ("model.dropout_rate",)),
    # 1 less the seventh digit: float32 has nothing between that and 1, with which an average never moves.
    ("from 0 to 0.9999999", lambda x: 0 <= x <= 0.9999999, (
        "optimizer.beta1", "optimizer.beta2", "optimizer.decay", "optimizer.momentum",
    )),
    ("from 0 to 0.5", lambda x: 0 <= x <= 0.5, ("data.augment.hue",)),
    ("1, 3 or unset", lambda x: x in (None, 1, 3), ("data.channels",)),
    ("from 1 to 4096 pixels, or unset", lambda x: x is None or 1 <= x <= 4096, ("data.image_size",)),
    ("two shares of the area, the smaller first", lambda x: not x or (_ascending(x) and x[1] <= 1), (
        "data.augment.random_resized_crop",
    )),
    ("two numbers above 0, the smaller first", _ascending, ("data.augment.aspect_ratio",)),
    ("numbers above 0, such as (60, 120)", lambda x: _numbers(x) and all(i > 0 for i in x), ("schedule.boundaries",)),
    ("a number from 0 to 1 for each channel", lambda x: _numbers(x) and all(0 <= i <= 1 for i in x), ("data.mean",)),
    ("a number above 0 for each channel", lambda x: _numbers(x) and all(i > 0 for i in x), ("data.std",)),
    ("different names", _names, ("data.classes", "evaluate.splits", "evaluate.final_splits", "finetune.head")),
    ("a part of the data, such as train[:90%]", bool, ("data.splits.train",)),
)  # fmt: skip


def default_config() -> Config:
    """All fields at their defaults. The network's options stay open for networks from outside the package."""
    config = _section()
    config.seed = 0  # of initialisation, data order, augmentation and dropout
    config.batch_size = 128  # examples per update, over all devices
    config.accumulation_steps = 1  # micro-batches per update, each of batch_size / accumulation_steps examples
    config.num_epochs = 10
    config.num_devices = 0  # devices of the data mesh; 0: all there are
    config.compute_dtype = "auto"  # auto: bfloat16 where it is faster, else float32; see docs/speed.md
    config.average_decay = 0.0  # of the weights' moving average, which is evaluated; less in the first steps; 0: none
    config.init_from = placeholder(str)  # weights: a run's folder, "torchvision:googlenet", a file; unset: random ones
    config.deterministic = False  # the same bits in every run on a GPU, too, which costs speed; CPUs need no switch
    config.profile = False  # trace a few steps into the run's folder, for TensorBoard's profiler and Perfetto

    config.model = model = _section()
    model.name = "googlenet"  # a name from list_models(), "module:Name" from outside the package, "": init_from's
    model.norm = placeholder(str)  # "lrn", "batch", "none"
    model.kernel_5x5 = placeholder(int)  # side of the third branch's kernel: 5 as the paper, 3 as torchvision
    model.aux_heads = placeholder(bool)  # auxiliary classifiers
    model.aux_pool = placeholder(str)  # "adaptive" (4x4 maps, PyTorch) or "paper" (5x5, stride 3)
    model.residual = placeholder(str)  # "none", "identity", "projection"
    model.stem = placeholder(str)  # "imagenet", or one of the network's stems for small images
    model.dropout_rate = placeholder(float)
    model.initializer = placeholder(str)  # of the kernels; the network's docstring lists the names

    config.data = data = _section()
    data.name = "digits"  # a name from data.DATASETS, or "module:Name" from outside the package
    data.directory = placeholder(str)  # where prepared data is kept; unset: $INCEPTION_JAX_DATA, else ~/.cache
    data.archives = placeholder(str)  # a folder with the original archives, for machines that cannot download
    data.folder = placeholder(str)  # the pictures of image_folder, imagenet_subset, imagenet2012; read in place
    data.classes = ()  # of such a folder, the names of class folders or synsets; (): the set's own choice
    data.hold_out = placeholder(float)  # per class, to be its test split: a count or a share; unset: the set's own
    data.split_seed = 0  # of such a folder: decides what is held out, and the order in which splits are cut
    data.keep = "all"  # "color" or "grayscale": pictures stored so, the others are left out
    data.on_error = "leave_out"  # pictures that cannot be decoded, with a warning; or "error"
    data.splits = splits = _section()  # in TFDS's notation, by percentage or count; "": none; "auto": as published, ...
    splits.train = "auto"  # ... or train[:90%] ...
    splits.validation = "auto"  # ... and train[90%:] where no validation split is published
    splits.test = "auto"
    data.image_size = placeholder(int)  # pixels; every image is resized to this square; unset: as it is
    data.channels = placeholder(int)  # 1 or 3; unset: as it is
    data.resize = "bilinear"  # or "bicubic"; both antialiased
    data.fit = "squash"  # to the square, the aspect ratio changed; or "crop": the square at the centre
    data.crop_share = 1.0  # fit "crop": side of that square, as a share of the shorter side, e.g. 0.875
    data.pipeline = "auto"  # "memory": decoded once; "streaming": when read; auto: the first if it fits memory_gib
    data.memory_gib = 4.0  # largest decoded data set that is not streamed
    data.num_workers = 0  # processes that decode a streamed set; 0: threads of this one
    data.normalization = "mean_std"  # "none": 0 to 255; "unit": 0 to 1; "mean", "mean_std": by channel; "per_image"
    data.mean = ()  # per channel, of pixels scaled to 0..1; (): of the training split
    data.std = ()
    data.balanced = False  # draw every class equally often, however many training images it has
    data.augment = augment = _section()  # on training images, inside the jitted step
    augment.pad_and_crop = 0  # zero pixels added on each side, then a random crop of the first size
    augment.random_resized_crop = ()  # (smallest, largest) share of the area, e.g. (0.08, 1.0); (): off
    augment.aspect_ratio = (3 / 4, 4 / 3)  # (narrowest, widest) crop of random_resized_crop
    augment.crop_originals = False  # random_resized_crop of pictures at full size, before they are resized; streamed
    augment.horizontal_flip = 0.0  # probability
    augment.rotation = 0.0  # largest angle, degrees
    augment.zoom = 0.0  # largest relative change of scale, e.g. 0.2 for 0.8 to 1.2
    augment.brightness = 0.0  # largest relative change; torchvision's ColorJitter
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0  # largest shift, in turns of the colour circle (at most 0.5)
    augment.randaugment_ops = 0  # RandAugment: operations drawn for each image; 0: off, 2: torchvision's default
    augment.randaugment_magnitude = 9  # RandAugment: strength of the operations, from 0 to 30
    augment.cutout = 0  # side of the zeroed square, pixels
    augment.random_erasing = 0.0  # probability of a zeroed rectangle
    augment.mixup = 0.0  # alpha of the Beta distribution that two images and their labels are blended by; 0: off
    augment.cutmix = 0.0  # the same, of the share that a box of another image gets; with mixup: either, drawn per batch

    config.loss = loss = _section()
    loss.label_smoothing = 0.0
    loss.aux_weight = 0.3  # weight of each auxiliary head's loss (Szegedy et al. 2015, section 5)

    config.optimizer = optimizer = _section()
    optimizer.name = "sgd"
    optimizer.momentum = 0.9  # sgd, rmsprop
    optimizer.nesterov = False  # sgd
    optimizer.beta1 = 0.9  # adam, adamw
    optimizer.beta2 = 0.999  # adam, adamw
    optimizer.decay = 0.9  # rmsprop: of the squared gradient's average
    optimizer.epsilon = 1e-8  # adam, adamw, rmsprop
    optimizer.centered = False  # rmsprop
    optimizer.weight_decay = 0.0  # on kernels only
    optimizer.weight_decay_mode = "coupled"  # coupled: L2, before momentum, as the papers; decoupled: as AdamW
    optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0: no clipping

    config.schedule = schedule = _section()
    schedule.name = "constant"
    schedule.learning_rate = 0.1  # the highest
    schedule.warmup_epochs = 0.0  # linear, from learning_rate / warm-up steps, before any schedule
    schedule.every_epochs = 8.0  # step: multiply by `factor` each time these have passed ...
    schedule.boundaries = ()  # ... or at these epochs instead, e.g. (60, 120)
    schedule.factor = 0.1  # step, plateau
    schedule.final_rate = 0.0  # cosine: the rate at the end
    schedule.decay_rate = 1e-6  # inverse_time: rate = learning_rate / (1 + decay_rate * step), as Keras's decay
    schedule.metric = "validation_loss"  # plateau: what is watched, an evaluated split's metric
    schedule.mode = "min"  # plateau: "min" or "max" of that metric is better
    schedule.patience = 10  # plateau: evaluations without improvement that are let pass
    schedule.threshold = 1e-4  # plateau: the change that counts as improvement
    schedule.threshold_mode = "relative"
    schedule.cooldown = 0  # plateau: evaluations after a reduction in which none are counted
    schedule.min_rate = 0.0  # plateau

    config.evaluate = evaluate = _section()
    evaluate.every_epochs = 1
    evaluate.first_epoch = 0  # no evaluation before this epoch's end
    evaluate.splits = ("validation",)  # evaluated during training
    evaluate.final_splits = ("validation", "test")  # evaluated at the end, with the last and the best weights
    evaluate.batch_size = 0  # 0: as in training
    evaluate.watch = "validation_top1"  # decides which checkpoint is the best, and early stopping
    evaluate.watch_mode = "max"
    evaluate.early_stopping_patience = 0  # evaluations without a better watched metric; 0: never stop early
    evaluate.stop_at = 0.0  # end the run once the watched metric is this good, e.g. 0.94; 0: never

    config.finetune = finetune = _section()  # of a network that init_from gave its weights
    finetune.head = ("fc", "aux*")  # names or shell patterns of the submodules that are new; all others are the trunk
    finetune.freeze_epochs = 0.0  # at the beginning, in which the trunk's parameters stay as they are
    finetune.trunk_rate = 1.0  # share of the learning rate that the trunk's parameters get

    config.checkpoint = checkpoint = _section()
    checkpoint.every_steps = 0  # besides the one at each evaluation; 0: none
    checkpoint.every_minutes = 10.0  # the same by the clock, for long epochs; not with nonfinite.retries; 0: none
    checkpoint.keep_latest = 2  # the second is for the day on which the first is damaged
    checkpoint.keep_best = 1
    checkpoint.keep_every_steps = 0  # saved at the multiples of this, and kept for good; 0: none

    config.nonfinite = nonfinite = _section()  # what to do when the loss becomes infinite or NaN
    nonfinite.retries = 0  # times that the run goes back to its last checkpoint, with a smaller rate; then it stops
    nonfinite.factor = 0.5  # by which the rate is multiplied each time

    config.log = log = _section()
    log.every_seconds = 10.0  # between console lines where there is no terminal
    log.progress = "auto"  # auto: a bar on a terminal, lines elsewhere
    log.tensorboard = True
    log.watchdog_minutes = 30.0  # without a step or an evaluated batch, after which the process ends; 0: never

    config.lock()
    model.unlock()
    return config


def _section() -> Config:
    return ml_collections.ConfigDict()


def field_names(config: Config, prefix: str = "") -> Iterator[str]:
    """The full names of all fields, such as "schedule.learning_rate"."""
    for name in config:
        value = config.get(name)
        if isinstance(value, ml_collections.ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def check_types(config: Config, *, others: bool = False) -> None:
    """Raises UserError unless the config has all fields, each of its type, and no others but the network's.

    Args:
      others: whether it may have them nevertheless.
    """
    default = default_config()
    known, given = set(field_names(default)), set(field_names(config))
    for path in sorted(given - known):
        if not others and not path.startswith("model."):
            raise unknown_name("field", path, known)
    check_fields(config)
    for path in sorted(known):
        section, _, name = path.rpartition(".")
        kind = (get_field(default, section) if section else default).get_type(name)
        value = get_field(config, path)
        unset = value is None and get_field(default, path) is None
        if not (unset or has_type(value, kind)):
            raise UserError(f"{path}={value!r} is not allowed: it must be {KINDS[kind]}")
        if kind is str and value and min(value) < " ":  # no path has them on purpose, and messages are one line
            raise UserError(f"{path}={value!r} is not allowed: it must be text without control characters")


def check_fields(config: Config) -> None:
    """Raises UserError unless the config has all fields."""
    missing = sorted(set(field_names(default_config())) - set(field_names(config)))
    if missing:
        raise UserError(f"the config has no field {missing[0]}: start it from inception_jax.config.default_config()")


def has_type(value: Any, kind: type) -> bool:
    """Whether a field of that type may have the value: True is no number, and whole numbers are numbers."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _check_size(path: str, value: Any) -> None:
    """Raises UserError for a number that the types of the computation do not have."""
    if isinstance(value, tuple | list):
        for item in value:
            _check_size(path, item)
    elif isinstance(value, int) and abs(value) > LARGEST_INT and path not in SEEDS:
        raise UserError(f"{path}={value} is not allowed: whole numbers must be at most {LARGEST_INT}")
    elif isinstance(value, float) and value != 0 and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        raise UserError(
            f"{path}={value} is not allowed: numbers must be 0, or from {SMALLEST_FLOAT} to {LARGEST_FLOAT} in size"
        )


def validate(config: Config) -> None:
    """Raises UserError at the first field whose value is not allowed, before anything is computed."""
    check_types(config)
    for path in field_names(config):
        _check_size(path, get_field(config, path))
    for path, allowed in CHOICES.items():
        value = get_field(config, path)
        if value not in allowed:
            raise unknown_name(path, str(value), allowed)
    for allowed, holds, paths in LIMITS:
        for path in paths:
            if not holds(get_field(config, path)):
                raise UserError(f"{path}={get_field(config, path)!r} is not allowed: it must be {allowed}")
    for path in PATHS:
        value = get_field(config, path)
        if value is not None and not value.strip():
            raise UserError(f"{path} is empty: it must name a place, or be None for none")
    if config.schedule.warmup_epochs > config.num_epochs:
        logger.warning(
            "schedule.warmup_epochs=%g is longer than the run, num_epochs=%d: the rate never reaches "
            "schedule.learning_rate=%g",
            config.schedule.warmup_epochs, config.num_epochs, config.schedule.learning_rate,
        )  # fmt: skip
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into accumulation_steps="
            f"{config.accumulation_steps} equal micro-batches: choose a multiple"
        )
    # The training split has its metrics already: the running means over each epoch.
    known = {split for split in config.data.splits if config.data.splits[split]} - {"train"}
    if config.data.augment.crop_originals and not config.data.augment.random_resized_crop:
        raise UserError("data.augment.crop_originals needs data.augment.random_resized_crop, e.g. (0.08, 1.0)")
    if config.data.augment.crop_originals and config.data.pipeline == "memory":
        raise UserError("data.augment.crop_originals is not allowed with data.pipeline='memory': pictures are cut anew")
    for path in ("evaluate.splits", "evaluate.final_splits"):
        for split in get_field(config, path):
            if split not in known:
                raise unknown_name(f"split in {path}", str(split), known)
    metrics = [f"{split}_{name}" for split in config.evaluate.splits for name in ("loss", "top1", "top5")]
    watched = {"evaluate.watch": "evaluate.watch_mode"}
    if config.schedule.name == "plateau":
        watched["schedule.metric"] = "schedule.mode"
    for path, mode_path in watched.items() if metrics else ():
        metric, mode = get_field(config, path), get_field(config, mode_path)
        if metric not in metrics:
            raise unknown_name(f"metric in {path}", metric, metrics)
        better = "min" if metric.endswith("_loss") else "max"
        if mode != better:
            raise UserError(f"{mode_path}={mode!r} is not allowed with {path}={metric!r}: it must be {better!r}")
    if config.schedule.name == "plateau":
        _validate_plateau(config.schedule)
        if not metrics:
            raise UserError("schedule.name='plateau' needs a split in evaluate.splits to watch")
    for field in ("stop_at", "early_stopping_patience"):
        if config.evaluate[field] and not metrics:
            raise UserError(f"evaluate.{field} needs a split in evaluate.splits to watch")
    if config.evaluate.stop_at > 1 and not config.evaluate.watch.endswith("_loss"):
        raise UserError(
            f"evaluate.stop_at={config.evaluate.stop_at} is not allowed with evaluate.watch={config.evaluate.watch!r}, "
            "which is from 0 to 1"
        )


def _validate_plateau(schedule: Config) -> None:
    if schedule.factor >= 1:
        raise UserError(
            f"schedule.factor={schedule.factor} is not allowed with schedule.name='plateau': it must be less than 1"
        )
    if schedule.threshold_mode == "relative" and schedule.threshold >= 1:
        raise UserError(
            f"schedule.threshold={schedule.threshold} is not allowed with schedule.threshold_mode='relative', of which "
            "it is a share: it must be less than 1"
        )


def get_field(config: Config, path: str) -> Any:
    """A field by its full name, such as "schedule.learning_rate"."""
    for part in path.split("."):
        config = config[part]
    return config
