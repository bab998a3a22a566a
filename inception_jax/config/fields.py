"""Every field of an experiment, one row each: the defaults, the checks, `--help` and docs/config.md are views of it.

To add a field, add a row; then run `python -m inception_jax.config.reference > docs/config.md`.
"""

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, TypeAlias, get_args, get_origin

import ml_collections
from ml_collections.config_dict import placeholder

from inception_jax.config import rules
from inception_jax.config.rules import Rule

Config: TypeAlias = Any  # an ml_collections.ConfigDict, whose fields have no static types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the config.

    Attributes:
      name: with its section, such as "schedule.learning_rate".
      annotation: its type: int, float, bool or str, or a tuple of these; with `| None` for a field that can be unset.
      default: None means unset: the default of the network or the data set applies.
      meaning: for users, with the unit and, where there is one, the source. Durations are epochs of the training
        split unless the meaning says otherwise.
      rule: what the value must be, beyond its type.
      choices: all allowed values, if the field is one of a few names.
      may_differ: whether a run may be resumed with another value. True for where files are, what is shown and what
        happens after a failure; False for what decides what is computed.
      per_process: whether the processes of one run may have different values.
      source: whether the field says where files or weights come from, so that an empty text is a mistake: usually a
        shell variable that is not set.
      outside: whether the value may also name code outside the package, see `registry.is_outside`.
      any_name: whether the items of a tuple are names that people choose, so that `1` and `None` are names, too.
    """

    name: str
    annotation: Any
    default: Any
    meaning: str
    rule: Rule | None = None
    choices: tuple[str, ...] = ()
    may_differ: bool = False
    per_process: bool = False
    source: bool = False
    outside: bool = False
    any_name: bool = False

    @property
    def section(self) -> str:
        """The part of the name before the last dot; "" for a field of no section."""
        return self.name.rpartition(".")[0]

    @property
    def optional(self) -> bool:
        """Whether the field can be None, that is unset."""
        return isinstance(self.annotation, types.UnionType)

    @property
    def kind(self) -> type:
        """The class of a value that is set: int, float, bool, str or tuple."""
        kind = get_args(self.annotation)[0] if self.optional else self.annotation
        return get_origin(kind) or kind


def _row(name: str, annotation: Any, default: Any, meaning: str, **options: Any) -> Field:
    return Field(name=name, annotation=annotation, default=default, meaning=meaning, **options)


# What the sections are about, in the order of the table; "" holds the fields of no section.
SECTIONS = {
    "": "The run as a whole.",
    "model": "The network. Its options are unset by default, so that the network's own defaults apply. Options that "
    "only some networks have are fields of this section, too: --config.model.OPTION=VALUE.",
    "data": "The data set, and how a picture becomes an input of the network.",
    "data.splits": "Which examples each split has, in the notation of TFDS, by percentage or count. auto is the "
    "published split; an empty string leaves the split out.",
    "data.augment": "Augmentation of training images, inside the jitted step.",
    "loss": "The training loss.",
    "optimizer": "How gradients become updates. Each optimizer ignores the fields that it does not have. The arguments "
    "of an optimizer from outside the package are fields of this section, too: --config.optimizer.ARGUMENT=VALUE.",
    "schedule": "The learning rate over time. Each schedule ignores the fields that it does not have. The arguments of "
    "a schedule from outside the package are fields of this section, too: --config.schedule.ARGUMENT=VALUE.",
    "evaluate": "What is evaluated, how often, and which metric decides.",
    "finetune": "Training that starts from the weights in init_from.",
    "checkpoint": "When the run is saved besides at each evaluation, and which checkpoints are kept.",
    "nonfinite": "What happens when the loss becomes NaN or infinite.",
    "log": "What is shown and recorded while the run is going on.",
}

# fmt: off
FIELDS: tuple[Field, ...] = (
    _row("seed", int, 0, "Seed of the initialization, the data order, augmentation and dropout.", rule=rules.SEED),
    _row("batch_size", int, 128, "Examples per update, over all devices.", rule=rules.AT_LEAST_1),
    _row("accumulation_steps", int, 1, rule=rules.AT_LEAST_1,
         meaning="Micro-batches per update; each has batch_size / accumulation_steps examples."),
    _row("num_epochs", int, 10, "Epochs to train for.", rule=rules.AT_LEAST_1),
    _row("num_devices", int, 0, "Devices to train on; 0 uses all.", rule=rules.AT_LEAST_0, may_differ=True),
    _row("compute_dtype", str, "auto", choices=("auto", "float32", "bfloat16", "float64"),
         meaning="Type that the network computes in. auto is bfloat16 where that is faster, else float32; parameters, "
                 "statistics and losses have at least float32."),
    _row("average_decay", float, 0.0, rule=rules.BELOW_1,
         meaning="Decay of the moving average of the weights, which is what is evaluated; smaller in the first steps. "
                 "0 keeps no average."),
    _row("init_from", str | None, None, source=True,
         meaning="Weights to start from: a run's directory, a file, or published weights such as "
                 "torchvision:googlenet. Unset, they are random."),
    _row("metrics", tuple[str, ...], (), rule=rules.OUTSIDE,
         meaning="Additional metrics, module:Name of a clu.metrics.Collection or Metric class: each is evaluated as "
                 "SPLIT_NAME."),
    _row("deterministic", bool, False,
         meaning="Whether two runs on a GPU give the same bits, which makes them slower. On a CPU they always do."),
    _row("callbacks", tuple[str, ...], (), rule=rules.NAMES, may_differ=True, any_name=True,
         meaning="Objects or classes, each module:Name, that are called after steps and evaluations and at the end, "
                 "and may end the run."),
    _row("profile", bool, False, may_differ=True,
         meaning="Whether to trace a few steps into the run's directory, for TensorBoard's profiler and Perfetto."),

    _row("model.name", str, "googlenet",
         meaning="A registered network, or module:Name from outside the package. An empty string takes the network of "
                 "the weights in init_from."),
    _row("model.norm", str | None, None, "Normalization: batch or none; of GoogLeNet also lrn or stem."),
    _row("model.kernel_5x5", int | None, None,
         meaning="Side of the kernel in the third branch of an Inception module, in pixels: 5 as in the paper "
                 "(Szegedy et al. 2015), 3 as in torchvision."),
    _row("model.aux_heads", bool | None, None, "Whether the network has its auxiliary classifiers."),
    _row("model.aux_pool", str | None, None,
         meaning="Pooling of the auxiliary classifiers: adaptive (to 4x4, as in PyTorch) or paper (5x5, stride 3)."),
    _row("model.residual", str | None, None, "Shortcuts around the modules: none, identity or projection."),
    _row("model.stem", str | None, None, "imagenet, or one of the network's stems for small images."),
    _row("model.dropout_rate", float | None, None, rule=rules.BELOW_1,
         meaning="Probability that dropout before the last layer drops a value."),
    _row("model.initializer", str | None, None,
         meaning="Initialization of the kernels; the network's docstring lists the names."),

    _row("data.name", str, "digits", "A data set of the package, or module:Name from outside it."),
    _row("data.directory", str | None, None, source=True, may_differ=True, per_process=True,
         meaning="Directory for prepared data. Unset, it is $INCEPTION_JAX_DATA, else ~/.cache/inception_jax."),
    _row("data.archives", str | None, None, source=True, may_differ=True, per_process=True,
         meaning="Directory with the original archives, for machines that cannot download them."),
    _row("data.folder", str | None, None, source=True, may_differ=True, per_process=True,
         meaning="Directory with the pictures of image_folder, imagenet_subset or imagenet2012, which are read in "
                 "place."),
    _row("data.classes", tuple[str, ...], (), rule=rules.NAMES, any_name=True,
         meaning="Class directories or synsets of data.folder to train on. Empty leaves the choice to the data set."),
    _row("data.hold_out", float | None, None, rule=rules.AT_LEAST_0,
         meaning="Pictures of each class of data.folder that become the test split: a count, or a share if less than "
                 "1. Unset, the data set decides."),
    _row("data.split_seed", int, 0, rule=rules.SEED,
         meaning="Seed that decides which pictures of data.folder are held out, and in which order splits are cut."),
    _row("data.keep", str, "all", choices=("all", "color", "grayscale"),
         meaning="Which pictures are kept, by how they are stored; the others are left out."),
    _row("data.on_error", str, "leave_out", choices=("leave_out", "error"),
         meaning="What happens to pictures that cannot be decoded: they are left out with a warning, or an error "
                 "ends the run."),
    _row("data.splits.train", str, "auto", rule=rules.SPLIT,
         meaning="The training split; auto is train[:90%] where no validation split is published."),
    _row("data.splits.validation", str, "auto",
         meaning="The validation split; auto is train[90%:] where none is published."),
    _row("data.splits.test", str, "auto", "The test split."),
    _row("data.image_size", int | None, None, rule=rules.PIXELS,
         meaning="Side of the square that every picture is resized to, in pixels. Unset, pictures keep their size."),
    _row("data.channels", int | None, None, rule=rules.CHANNELS,
         meaning="1 converts pictures to grayscale, 3 to RGB. Unset, they stay as they are."),
    _row("data.pad", int, 0, rule=rules.PAD,
         meaning="Pixels of zeros on each side of every picture, before it is resized, such as 2 for MNIST at 32 "
                 "pixels."),
    _row("data.resize", str, "bilinear", choices=("bilinear", "bicubic"),
         meaning="Interpolation when pictures are resized; antialiased."),
    _row("data.fit", str, "squash", choices=("squash", "crop"),
         meaning="How a picture becomes a square: squash changes its aspect ratio, crop takes the square at its "
                 "center."),
    _row("data.crop_share", float, 1.0, rule=rules.SHARE,
         meaning="Side of the square of data.fit=crop, as a share of the picture's shorter side, such as 0.875."),
    _row("data.pipeline", str, "auto", choices=("auto", "memory", "streaming"), may_differ=True, per_process=True,
         meaning="When pictures are decoded: memory decodes them once, streaming whenever they are read; auto is "
                 "memory if the decoded data fits data.memory_gib."),
    _row("data.memory_gib", float, 4.0, rule=rules.AT_LEAST_0, may_differ=True, per_process=True,
         meaning="Largest decoded data set that data.pipeline=auto does not stream, in GiB."),
    _row("data.num_workers", int, 0, rule=rules.WORKERS, may_differ=True, per_process=True,
         meaning="Processes that decode streamed pictures; 0 uses threads of the training process."),
    _row("data.normalization", str, "mean_std", choices=("none", "unit", "mean", "mean_255", "mean_std", "per_image"),
         meaning="Normalization of the pixels: none leaves 0 to 255, unit scales to 0 to 1, mean subtracts the mean of "
                 "each channel from pixels of 0 to 1, mean_255 from pixels of 0 to 255, mean_std divides what mean "
                 "gives by the standard deviation, per_image standardizes each image."),
    _row("data.mean", tuple[float, ...], (), rule=rules.CHANNEL_MEANS,
         meaning="Mean of each channel, of pixels scaled to 0 to 1. Empty takes that of the training split."),
    _row("data.std", tuple[float, ...], (), rule=rules.CHANNEL_DEVIATIONS,
         meaning="Standard deviation of each channel, of pixels scaled to 0 to 1. Empty takes that of the training "
                 "split."),
    _row("data.balanced", bool, False,
         meaning="Whether every class is drawn equally often, however many training images it has."),

    _row("data.augment.pad_and_crop", int, 0, rule=rules.AT_LEAST_0,
         meaning="Zero pixels added on each side before a random crop of the original size; 0 is off."),
    _row("data.augment.random_resized_crop", tuple[float, ...], (), rule=rules.AREA,
         meaning="Smallest and largest share of the area that a random crop has before it is resized, such as "
                 "0.08,1.0 (Szegedy et al. 2015, section 6). Empty is off."),
    _row("data.augment.aspect_ratio", tuple[float, ...], (3 / 4, 4 / 3), rule=rules.RATIOS,
         meaning="Smallest and largest aspect ratio of random_resized_crop, width / height."),
    _row("data.augment.crop_originals", bool, False,
         meaning="Whether random_resized_crop cuts the pictures at full size, before they are resized; they are then "
                 "streamed."),
    _row("data.augment.horizontal_flip", float, 0.0, rule=rules.PROBABILITY,
         meaning="Probability that an image is mirrored left to right."),
    _row("data.augment.vertical_flip", float, 0.0, rule=rules.PROBABILITY,
         meaning="Probability that an image is mirrored top to bottom, as is right for aerial pictures."),
    _row("data.augment.quarter_turns", float, 0.0, rule=rules.PROBABILITY,
         meaning="Probability that a square image is turned by 90, 180 or 270 degrees, equally often."),
    _row("data.augment.rotation", float, 0.0, "Largest rotation, in degrees.", rule=rules.DEGREES),
    _row("data.augment.zoom", float, 0.0, rule=rules.BELOW_1,
         meaning="Largest relative change of scale, such as 0.2 for 0.8 to 1.2."),
    _row("data.augment.brightness", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Largest relative change of brightness, as in torchvision's ColorJitter."),
    _row("data.augment.contrast", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Largest relative change of contrast, as in torchvision's ColorJitter."),
    _row("data.augment.saturation", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Largest relative change of saturation, as in torchvision's ColorJitter."),
    _row("data.augment.hue", float, 0.0, rule=rules.HALF_TURN,
         meaning="Largest shift of hue, in turns of the color circle, as in torchvision's ColorJitter."),
    _row("data.augment.randaugment_ops", int, 0, rule=rules.OPERATIONS,
         meaning="Operations that RandAugment (Cubuk et al. 2020) draws for each image; torchvision's default is 2, "
                 "0 is off."),
    _row("data.augment.randaugment_magnitude", int, 9, rule=rules.MAGNITUDE,
         meaning="Strength of RandAugment's operations."),
    _row("data.augment.cutout", int, 0, rule=rules.AT_LEAST_0,
         meaning="Side of the square that is set to zero, in pixels; 0 is off."),
    _row("data.augment.random_erasing", float, 0.0, rule=rules.PROBABILITY,
         meaning="Probability that a rectangle of an image is set to zero."),
    _row("data.augment.mixup", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Alpha of the Beta distribution by which MixUp blends two images and their labels; 0 is off."),
    _row("data.augment.cutmix", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Alpha of the Beta distribution of the area that CutMix takes from another image; 0 is off. With "
                 "mixup, each batch draws one of the two."),
    _row("data.augment.before", tuple[str, ...], (), rule=rules.OUTSIDE,
         meaning="Own functions, module:Name, from a key and images to images, applied before the augmentation above."),
    _row("data.augment.after", tuple[str, ...], (), rule=rules.OUTSIDE,
         meaning="Own functions, module:Name, from a key and images to images, applied after the augmentation above, "
                 "before normalization, mixup and cutmix."),

    _row("loss.name", str, "cross_entropy", choices=("cross_entropy",), outside=True,
         meaning="The loss of each head."),
    _row("loss.label_smoothing", float, 0.0, rule=rules.PROBABILITY,
         meaning="Share of the target that is spread evenly over all classes (Szegedy et al. 2016, section 7)."),
    _row("loss.aux_weight", float, 0.3, rule=rules.AT_LEAST_0,
         meaning="Weight of the loss of each auxiliary classifier (Szegedy et al. 2015, section 5)."),
    _row("loss.class_weights", tuple[float, ...], (), rule=rules.CLASS_WEIGHTS,
         meaning="Weight of each class in the training loss, in the order of the classes, as torch's "
                 "CrossEntropyLoss(weight) has it; or balanced, inversely proportional to its number of training "
                 "images. Metrics, such as train_loss and validation_loss, are not weighted. Empty is off."),

    _row("optimizer.name", str, "sgd", choices=("sgd", "adam", "adamw", "rmsprop", "rmsprop_tensorflow"),
         outside=True,
         meaning="The optimizer, as in PyTorch; rmsprop_tensorflow is TensorFlow's, which trained Inception v3."),
    _row("optimizer.momentum", float, 0.9, "Momentum of sgd and rmsprop.", rule=rules.DECAY),
    _row("optimizer.nesterov", bool, False, "Whether sgd uses Nesterov's momentum."),
    _row("optimizer.beta1", float, 0.9, rule=rules.DECAY,
         meaning="Decay of the gradient's average, for adam and adamw."),
    _row("optimizer.beta2", float, 0.999, rule=rules.DECAY,
         meaning="Decay of the squared gradient's average, for adam and adamw."),
    _row("optimizer.decay", float, 0.9, rule=rules.DECAY,
         meaning="Decay of the squared gradient's average, for rmsprop (PyTorch's alpha)."),
    _row("optimizer.epsilon", float, 1e-8, rule=rules.POSITIVE,
         meaning="Term that keeps the denominator of adam, adamw and rmsprop above 0."),
    _row("optimizer.centered", bool, False,
         meaning="Whether rmsprop normalizes by the gradient's variance instead of its square."),
    _row("optimizer.weight_decay", float, 0.0, "Weight decay, of kernels only.", rule=rules.AT_LEAST_0),
    _row("optimizer.weight_decay_mode", str, "coupled", choices=("coupled", "decoupled"),
         meaning="coupled adds the decay to the gradient, before momentum, as the papers do (L2); decoupled adds it to "
                 "the update, as AdamW does."),
    _row("optimizer.weight_decay_layers", tuple[str, ...], (), rule=rules.NAMES, any_name=True,
         meaning="Names or shell patterns of the layers, or of modules that contain them, whose kernels are decayed, "
                 "such as conv?_3,fc?. Empty decays all kernels."),
    _row("optimizer.clip_norm", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Largest global norm of the gradient; 0 does not clip."),

    _row("schedule.name", str, "constant", choices=("constant", "step", "plateau", "cosine", "inverse_time"),
         outside=True, meaning="The schedule of the learning rate."),
    _row("schedule.learning_rate", float, 0.1, "The highest learning rate.", rule=rules.AT_LEAST_0),
    _row("schedule.warmup_epochs", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Epochs of linear warm-up to learning_rate, before any schedule."),
    _row("schedule.every_epochs", float, 8.0, rule=rules.POSITIVE,
         meaning="step: the rate is multiplied by factor each time this many epochs have passed."),
    _row("schedule.boundaries", tuple[float, ...], (), rule=rules.EPOCHS,
         meaning="step: epochs at which the rate is multiplied by factor, such as 60,120. Empty uses every_epochs."),
    _row("schedule.factor", float, 0.1, rule=rules.POSITIVE,
         meaning="step, plateau: what the rate is multiplied by."),
    _row("schedule.final_rate", float, 0.0, "cosine: the rate at the end.", rule=rules.AT_LEAST_0),
    _row("schedule.cycles", int, 1, rule=rules.AT_LEAST_1,
         meaning="cosine: number of cycles, after each of which the rate starts again (Loshchilov and Hutter 2017). "
                 "The checkpoint at the end of each is kept, for evaluate --snapshots."),
    _row("schedule.cycle_factor", float, 1.0, rule=rules.POSITIVE,
         meaning="cosine: length of each cycle, as a multiple of that of the one before it."),
    _row("schedule.decay_rate", float, 1e-6, rule=rules.AT_LEAST_0,
         meaning="inverse_time: the rate is learning_rate / (1 + decay_rate * step), as with the decay of Keras."),
    _row("schedule.metric", str, "validation_loss",
         meaning="plateau: the metric to watch, of a split in evaluate.splits."),
    _row("schedule.mode", str, "min", choices=("max", "min"),
         meaning="plateau: whether a larger or a smaller value of the metric is better."),
    _row("schedule.patience", int, 10, rule=rules.AT_LEAST_0,
         meaning="plateau: evaluations without an improvement to wait before the rate is reduced."),
    _row("schedule.threshold", float, 1e-4, rule=rules.AT_LEAST_0,
         meaning="plateau: smallest change of the metric that counts as an improvement."),
    _row("schedule.threshold_mode", str, "relative", choices=("relative", "absolute"),
         meaning="plateau: whether threshold is a share of the best value or a difference from it."),
    _row("schedule.cooldown", int, 0, rule=rules.AT_LEAST_0,
         meaning="plateau: evaluations after a reduction that do not count."),
    _row("schedule.min_rate", float, 0.0, "plateau: the smallest learning rate.", rule=rules.AT_LEAST_0),

    _row("evaluate.every_epochs", int, 1, "Epochs between two evaluations.", rule=rules.AT_LEAST_1),
    _row("evaluate.first_epoch", int, 0, rule=rules.AT_LEAST_0,
         meaning="Epoch before whose end nothing is evaluated."),
    _row("evaluate.splits", tuple[str, ...], ("validation",), "Splits evaluated during training.", rule=rules.NAMES),
    _row("evaluate.final_splits", tuple[str, ...], ("validation", "test"), rule=rules.NAMES,
         meaning="Splits evaluated at the end, with the last weights and the best ones."),
    _row("evaluate.batch_size", int, 0, rule=rules.AT_LEAST_0,
         meaning="Examples per evaluation batch; 0 takes that of training."),
    _row("evaluate.watch", str, "validation_top1",
         meaning="Metric that decides which checkpoint is the best, and when to stop early."),
    _row("evaluate.watch_mode", str, "max", choices=("max", "min"),
         meaning="Whether a larger or a smaller value of evaluate.watch is better."),
    _row("evaluate.early_stopping_patience", int, 0, rule=rules.AT_LEAST_0,
         meaning="Evaluations without a better value of evaluate.watch after which the run ends; 0 never ends it."),
    _row("evaluate.stop_at", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Value of evaluate.watch at which the run ends, such as 0.94; 0 never ends it."),

    _row("finetune.head", tuple[str, ...], ("fc", "aux*"), rule=rules.NAMES,
         meaning="Names or shell patterns of the submodules that are new; all others are the trunk."),
    _row("finetune.freeze_epochs", float, 0.0, rule=rules.AT_LEAST_0,
         meaning="Epochs at the beginning in which the trunk's parameters stay as they are."),
    _row("finetune.trunk_rate", float, 1.0, rule=rules.AT_LEAST_0,
         meaning="Learning rate of the trunk, as a multiple of that of the head."),

    _row("checkpoint.every_steps", int, 0, rule=rules.AT_LEAST_0, may_differ=True,
         meaning="Steps between checkpoints; 0 saves at evaluations only."),
    _row("checkpoint.every_minutes", float, 10.0, rule=rules.AT_LEAST_0, may_differ=True,
         meaning="Minutes between checkpoints, for long epochs; ignored with nonfinite.retries. 0 is off."),
    _row("checkpoint.keep_latest", int, 2, rule=rules.AT_LEAST_1, may_differ=True,
         meaning="Latest checkpoints to keep; the second is there in case the first is damaged."),
    _row("checkpoint.keep_best", int, 1, "Best checkpoints to keep.", rule=rules.AT_LEAST_0, may_differ=True),
    _row("checkpoint.keep_every_steps", int, 0, rule=rules.AT_LEAST_0, may_differ=True,
         meaning="Steps whose multiples are saved and never deleted; 0 is off."),

    _row("nonfinite.retries", int, 0, rule=rules.AT_LEAST_0, may_differ=True,
         meaning="Times that the run goes back to its last checkpoint, with a smaller learning rate, before it ends."),
    _row("nonfinite.factor", float, 0.5, rule=rules.BETWEEN_0_AND_1, may_differ=True,
         meaning="What the learning rate is multiplied by each time."),

    _row("log.every_seconds", float, 10.0, rule=rules.AT_LEAST_0, may_differ=True, per_process=True,
         meaning="Seconds between lines on the console where it is not a terminal."),
    _row("log.progress", str, "auto", choices=("auto", "bar", "lines"), may_differ=True, per_process=True,
         meaning="How progress is shown; auto is a bar on a terminal, lines elsewhere."),
    _row("log.to", tuple[str, ...], (), rule=rules.NAMES, may_differ=True, per_process=True, any_name=True,
         meaning="Loggers that get the config, the curves, pictures and the report: mlflow, tensorboard, wandb, or "
                 "module:Name from outside the package."),
    _row("log.every_steps", int, 100, rule=rules.AT_LEAST_0, may_differ=True, per_process=True,
         meaning="Steps between two points that loggers get of the training loss and the learning rate; 0 gives them "
                 "evaluations only."),
    _row("log.tensorboard", bool, True, may_differ=True, per_process=True,
         meaning="Whether to write TensorBoard events also if log.to does not name tensorboard. Pictures are made only "
                 "if log.to names a logger."),
    _row("log.watchdog_minutes", float, 30.0, rule=rules.AT_LEAST_0, may_differ=True, per_process=True,
         meaning="Minutes without a step or an evaluated batch after which the process ends; 0 waits forever."),
)
# fmt: on

BY_NAME = {field.name: field for field in FIELDS}
# Sections that take new fields: options of networks, and arguments of optimizers and schedules outside the package.
OPEN_SECTIONS = ("model", "optimizer", "schedule")
CHOICES = {field.name: field.choices for field in FIELDS if field.choices}


def default_config() -> Config:
    """A config with all fields at their defaults, as a `ConfigDict`.

    Only the sections model, optimizer and schedule take new fields: options of a network, and arguments of an optimizer
    or a schedule from outside the package.
    """
    tree: dict[str, Any] = {}
    for field in FIELDS:
        *sections, name = field.name.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = placeholder(field.kind) if field.default is None else field.default
    config: Config = ml_collections.ConfigDict(tree)
    config.lock()
    for section in OPEN_SECTIONS:
        config[section].unlock()
    return config


def field_names(config: Config, prefix: str = "") -> Iterator[str]:
    """The full names of all fields, such as "schedule.learning_rate"."""
    for name in config:
        value = config.get(name)
        if isinstance(value, ml_collections.ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def get_field(config: Config, name: str) -> Any:
    """The value of a field by its full name, such as "schedule.learning_rate"."""
    for part in name.split("."):
        config = config[part]
    return config


def may_be_unset(name: str) -> bool:
    """Whether None is a value of the field: an optional one, or one that is not in the table."""
    return BY_NAME[name].optional if name in BY_NAME else name.partition(".")[0] in OPEN_SECTIONS


def may_differ(name: str) -> bool:
    """Whether a run may be resumed with another value of the field.

    A field that is not in the table, from another version, may differ where all fields of its section may.
    """
    return all(field.may_differ for field in _like(name))


def per_process(name: str) -> bool:
    """Whether the processes of one run may have different values of the field; of an unknown field as `may_differ`."""
    return all(field.per_process for field in _like(name))


def _like(name: str) -> list[Field]:
    """The field's row; for an unknown field all rows of its section, or of the table if the section is unknown, too."""
    if name in BY_NAME:
        return [BY_NAME[name]]
    section = name.partition(".")[0] + "."
    return [field for field in FIELDS if field.name.startswith(section)] or list(FIELDS)
