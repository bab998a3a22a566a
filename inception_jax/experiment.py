"""What a config computes: the network, its optimizer, its inputs and its steps, in one object.

Everything here is pure: nothing is read, written or compiled. Training, studies, benchmarks and tests all build the
same `Experiment`; loading a run needs its network alone. Only metrics from outside the package are tried out on
numbers.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import optax
from clu.metrics import Metric
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import ops, steps
from inception_jax.config import CHOICES, Config, get_field
from inception_jax.config.fields import BY_NAME
from inception_jax.config.validate import METRICS
from inception_jax.data import augment
from inception_jax.data.transform import Transform
from inception_jax.errors import UserError, check_choice
from inception_jax.models import create_model
from inception_jax.models.folding import fold_model
from inception_jax.registry import is_outside
from inception_jax.steps import extensions, losses, optimizers, schedules, state
from inception_jax.steps.extensions import Part

SCHEDULE_OPTIONS = (
    "learning_rate", "warmup_epochs", "every_epochs", "boundaries", "factor", "final_rate", "cycles", "cycle_factor",
    "decay_rate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network has to know of its data: what its images are, and what its outputs mean.

    Attributes:
      class_names: in the order of the logits.
      image_shape: (height, width, channels) as stored.
      mean: per channel, of pixels scaled to 0..1.
      std: the same, of the standard deviation.
      words: of the classes, see `Dataset`. They do not tell one data set from another.
      class_counts: numbers of training images, where config.loss.class_weights is "balanced"; else empty.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    class_counts: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Inputs":
        return cls(**{key: tuple(value) for key, value in values.items()})

    def transform(self, section: Config) -> Transform:
        """How a picture becomes an input, with the options in a config's section `data`."""
        how = (section.resize, section.fit, section.crop_share, section.normalization)
        return Transform(self.image_shape, *how, self.mean, self.std, pad=section.pad)

    def augmenter(
        self,
        strengths: dict[str, Any],
        normalization: str,
        dtype: Any,
        before: Sequence[Part] = (),
        after: Sequence[Part] = (),
    ) -> steps.Prepare:
        """The counterpart of `Transform.normalizer` for training, with augmentation: (key, images) -> inputs.

        Args:
          before, after: functions (key, images) -> images from outside the package, see `own_augmentation`.
        """
        mean, std = np.asarray(self.mean, dtype), np.asarray(self.std, dtype)
        # Given beside them; applied by `mixer`, or when the files were read.
        elsewhere = {"before", "after", *augment.MIXING, "crop_originals"}
        if strengths.get("crop_originals"):
            elsewhere.add("random_resized_crop")
        strengths = {name: strength for name, strength in strengths.items() if name not in elsewhere}

        def prepare(key, images):
            images = augment.to_unit(images, dtype)
            # `augment` splits the key, which may draw the same as folding 0 and 1 in.
            for number, part in enumerate(before):
                images = part.call(part.value, jax.random.fold_in(key, 2 + 2 * number), images)
            images = augment.augment(key, images, **strengths)
            for number, part in enumerate(after):
                images = part.call(part.value, jax.random.fold_in(key, 3 + 2 * number), images)
            return augment.normalize(images, normalization=normalization, mean=mean, std=std)

        return prepare

    def mixer(self, strengths: dict[str, Any]) -> steps.Mix | None:
        """(key, inputs, labels) -> inputs and targets mixed by MixUp or CutMix; None if both are off."""
        alphas = {name: strengths[name] for name in augment.MIXING}
        return partial(augment.mix, num_classes=len(self.class_names), **alphas) if any(alphas.values()) else None


# Compared and hashed by identity: jax.jit hashes its methods, and a config is not hashable.
@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A config together with the properties of its data.

    Attributes:
      config: validated; its compute_dtype may be "auto", see `dtypes`.
      model: the Linen module.
      optimizer: the Optax chain.
      schedule: step -> learning rate.
      inputs: class names, image shape and normalization.
      steps_per_epoch: updates per epoch.
      loss: of each head, called like `losses.cross_entropy`.
      metrics: classes of metrics from outside the package, by name.
      before: augmentation from outside the package, before ours.
      after: the same, after ours.
      class_weights: in the training loss, (classes,); None if it has none.
    """

    config: Config
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: Callable[[int], Any]
    inputs: Inputs
    steps_per_epoch: int
    loss: Callable[..., jax.Array] = losses.cross_entropy
    metrics: Mapping[str, type[Metric]] = dataclasses.field(default_factory=dict)
    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    class_weights: np.ndarray | None = None

    @classmethod
    def of(
        cls, config: Config, inputs: Inputs, steps_per_epoch: int, given: Mapping[str, Any] | None = None
    ) -> "Experiment":
        """Builds the network, the optimizer and the other parts that `config` names, and tries them out on shapes.

        Args:
          given: objects in place of those that `config` names, by the name of the field, such as "loss.name".

        Raises:
          UserError: a network, option or other part in the config does not exist or is not applicable.
        """
        given = given or {}
        classes, (_, dtype) = len(inputs.class_names), dtypes(config.compute_dtype)
        model = build_model(config, classes)
        optimizer, schedule = build_optimizer(config, steps_per_epoch, given=given)
        metrics = extensions.metric_classes(own_parts(extensions.METRIC, "metrics", config, given))
        extensions.check_metrics(metrics, classes, dtype)
        _check_watched(config, metrics)
        before, after = own_augmentation(config, given)
        for part in (*before, *after):
            extensions.check_augmentation(part, inputs.image_shape, dtype)
        loss = build_loss(config, classes, dtype, given)
        weights = losses.class_weights(config.loss.class_weights, inputs.class_names, inputs.class_counts)
        return cls(config, model, optimizer, schedule, inputs, steps_per_epoch, loss, metrics, before, after, weights)

    @property
    def total_steps(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def snapshots(self) -> tuple[int, ...]:
        """The steps at which a cycle of the schedule ends; empty unless it has several."""
        return cycle_steps(self.config, self.steps_per_epoch)

    @property
    def frozen_steps(self) -> int:
        """The number of steps at the beginning in which no gradient of the trunk is needed."""
        finetune = self.config.finetune
        if not self.config.init_from:
            return 0
        if finetune.trunk_rate == 0 and not self.config.optimizer.clip_norm:  # its gradient counts for clipping alone
            return schedules.LARGEST_STEP
        return _frozen_updates(self.config, self.steps_per_epoch)

    @property
    def evaluates(self) -> bool:
        """Whether any split is evaluated, during training or after it."""
        return bool(self.config.evaluate.splits or self.config.evaluate.final_splits)

    @property
    def compute_dtype(self) -> Any:
        """The data type of the network's computation."""
        return dtypes(self.config.compute_dtype)[0]

    @property
    def image_dtype(self) -> Any:
        """The data type of parameters, input images and statistics."""
        return dtypes(self.config.compute_dtype)[1]

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """Compiler options for `jax.jit` of the steps, see `ops.compiler_options`."""
        return ops.compiler_options(self.compute_dtype)

    def initial_state(self, key: jax.Array | None = None) -> state.TrainState:
        """The state before the first update, with weights drawn from `key`; defaults to `initial_key`."""
        return state.create_state(
            initial_key(self.config) if key is None else key,
            self.model,
            self.optimizer,
            self.inputs.image_shape,
            dtype=self.image_dtype,
            plateau_mode=self.config.schedule.mode,
            with_average=self.config.average_decay > 0,
            own_metrics=self.metrics,
        )

    def check(self, state: state.TrainState) -> None:
        """Raises UserError if a part from outside the package does not fit the initial state, which may be abstract."""
        for name in self.metrics.keys() & state.metrics.keys():  # an auxiliary head's
            raise UserError(f"metric {name!r} is one of the network's already: give it another name")
        optimizer = self.config.optimizer.name
        if is_outside(optimizer):
            extensions.check_update(Part("optimizer", optimizer, None), self.optimizer, state.params)

    @cached_property
    def prepare(self) -> steps.Prepare:
        """(key, uint8 images) -> training inputs, augmented and normalized."""
        strengths, normalization = dict(self.config.data.augment), self.config.data.normalization
        return self.inputs.augmenter(strengths, normalization, self.image_dtype, self.before, self.after)

    @cached_property
    def normalize(self) -> Callable[[jax.Array], jax.Array]:
        """uint8 images (batch, height, width, channels) -> evaluation inputs."""
        return self.inputs.transform(self.config.data).normalizer(self.image_dtype)

    @cached_property
    def inference_model(self) -> nn.Module:
        """The network with batch norm folded into its convolutions; takes `folding.inference_variables`."""
        return fold_model(self.model)

    def train_step(
        self, state: state.TrainState, images: jax.Array, labels: jax.Array, key: jax.Array, *, frozen: bool = False
    ) -> tuple[state.TrainState, jax.Array]:
        """One update, see `steps.train_step`.

        Args:
          key: `training_key`.
          frozen: whether this is one of the `frozen_steps`, which take less time without the trunk's gradient.
        """
        weights = self.class_weights
        return steps.train_step(
            state,
            images,
            labels,
            key,
            model=self.model,
            optimizer=self.optimizer,
            prepare=self.prepare,
            mix=self.inputs.mixer(dict(self.config.data.augment)),
            label_smoothing=self.config.loss.label_smoothing,
            aux_weight=self.config.loss.aux_weight,
            class_weights=None if weights is None else jnp.asarray(weights, self.image_dtype),
            accumulation_steps=self.config.accumulation_steps,
            average_decay=self.config.average_decay,
            loss=self.loss,
            own_metrics=self.metrics,
            frozen=partial(_trunk, head=self.config.finetune.head) if frozen else None,
        )

    def eval_step(
        self, variables: dict[str, Any], images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """The metric sums of a batch, see `steps.eval_step`; `variables` are for `inference_model`."""
        options = {"model": self.inference_model, "prepare": self.normalize, "own_metrics": self.metrics}
        return steps.eval_step(variables, images, labels, mask, **options)


def cycle_steps(config: Config, steps_per_epoch: int) -> tuple[int, ...]:
    """The steps at which a cycle of the config's schedule ends; empty unless it has several."""
    schedule = config.schedule
    if schedule.name != "cosine" or schedule.cycles == 1:
        return ()
    ends = schedules.cycle_ends(config.num_epochs, steps_per_epoch, schedule.cycles, schedule.cycle_factor)
    return tuple(map(int, ends))


def dtypes(compute_dtype: str) -> tuple[Any, Any]:
    """The data types of the computation, and of parameters, images and statistics, for config.compute_dtype.

    "auto" means float32 on CPUs and bfloat16 elsewhere; training uses a finer rule, see `train.precision`.
    """
    check_choice("compute_dtype", compute_dtype, CHOICES["compute_dtype"])
    if compute_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
        return jnp.float64, jnp.float64
    if compute_dtype == "auto":
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(compute_dtype).type, jnp.float32


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network that the config names, with its options.

    Raises:
      UserError: the network or one of its options does not exist, or the config may not set an option.
    """
    dtype, param_dtype = dtypes(config.compute_dtype)
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    for option, source in (("num_classes", "the data"), ("dtype", "compute_dtype"), ("param_dtype", "compute_dtype")):
        if option in options:
            raise UserError(f"model.{option} cannot be set: it follows from {source}")
    return create_model(config.model.name, num_classes=num_classes, dtype=dtype, param_dtype=param_dtype, **options)


def own_parts(kind: str, field: str, config: Config, given: Mapping[str, Any]) -> list[Part]:
    """The objects that a field of the config names, or those given in their place, see `Experiment.of`."""
    names = tuple(map(str, get_field(config, field)))
    objects = given.get(field, (None,) * len(names))
    return [extensions.find(kind, name, value) for name, value in zip(names, objects, strict=True)]


def own_augmentation(config: Config, given: Mapping[str, Any]) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The augmentation from outside the package that the config names, before and after ours."""
    before, after = (
        tuple(own_parts("augmentation", f"data.augment.{place}", config, given)) for place in ("before", "after")
    )
    return before, after


def build_loss(config: Config, num_classes: int, dtype: Any, given: Mapping[str, Any]) -> Callable[..., jax.Array]:
    """The loss of each head that the config names, called like `losses.cross_entropy`.

    Raises:
      UserError: see `extensions.make_loss`; or class weights are set for another loss than the cross-entropy.
    """
    if not is_outside(config.loss.name):
        return losses.cross_entropy
    if config.loss.class_weights:
        raise UserError(
            f"loss.class_weights weight the cross-entropy, not loss.name={config.loss.name!r}: leave them out"
        )
    mixed = any(config.data.augment[name] for name in augment.MIXING)
    part = extensions.find("loss", config.loss.name, given.get("loss.name"))
    return extensions.make_loss(part, num_classes, dtype, probabilities=mixed or config.loss.label_smoothing > 0)


def build_schedule(config: Config, steps_per_epoch: int, given: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The schedule that the config names, step -> learning rate.

    Raises:
      UserError: see `schedules.make_schedule` and `extensions.make_schedule`.
    """
    section, num_epochs = config.schedule, config.num_epochs
    options: dict[str, Any] = {field: section[field] for field in SCHEDULE_OPTIONS}
    if not is_outside(section.name):
        return schedules.make_schedule(section.name, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs, **options)
    if options["decay_rate"] == BY_NAME["schedule.decay_rate"].default:
        del options["decay_rate"]  # Keras's, not that of optax.exponential_decay, which has to be set
    facts = {"steps_per_epoch": steps_per_epoch, "total_steps": num_epochs * steps_per_epoch, "num_epochs": num_epochs}
    part = extensions.find("schedule", section.name, given.get("schedule.name"))
    schedule = extensions.make_schedule(part, _arguments(section, "schedule"), options, facts)
    return schedules.after_warmup(schedule, round(section.warmup_epochs * steps_per_epoch))


def build_optimizer(
    config: Config,
    steps_per_epoch: int,
    schedule: Callable[[Any], Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[optax.GradientTransformation, Callable[[int], Any]]:
    """The Optax chain and its schedule, step -> learning rate: the given one, or the config's.

    Args:
      given: see `Experiment.of`.

    Raises:
      UserError: see `build_schedule`, `optimizers.make_optimizer` and `extensions.make_rule`.
    """
    section, given = config.optimizer, given or {}
    schedule = schedule or build_schedule(config, steps_per_epoch, given)
    options = {name: section[name] for name in section if name != "name" and f"optimizer.{name}" in BY_NAME}
    if is_outside(section.name):
        part = extensions.find("optimizer", section.name, given.get("optimizer.name"))
        mask = partial(optimizers.kernels, layers=section.weight_decay_layers)
        rule = extensions.make_rule(part, schedule, _arguments(section, "optimizer"), options, mask)
        options |= {"own": rule.transformation, "has_rate": rule.has_rate}
        if rule.decays:
            options["weight_decay"] = 0.0
    if config.init_from:
        options |= {
            "trunk": partial(_trunk, head=config.finetune.head),
            "trunk_rate": config.finetune.trunk_rate,
            "frozen_updates": _frozen_updates(config, steps_per_epoch),
        }
    return optimizers.make_optimizer(section.name, schedule, **options), schedule


def _arguments(section: Config, name: str) -> dict[str, Any]:
    """The fields of a section that are not in the table and set: arguments of code from outside the package."""
    return {key: value for key, value in section.items() if f"{name}.{key}" not in BY_NAME and value is not None}


def _check_watched(config: Config, metrics: Mapping[str, Any]) -> None:
    """Raises UserError if a metric that the config watches does not exist; those of the package are known to."""
    watched = [("evaluate.watch", config.evaluate.watch)] if config.evaluate.splits else []
    if config.schedule.name == "plateau":
        watched.append(("schedule.metric", config.schedule.metric))
    names = [f"{split}_{name}" for split in config.evaluate.splits for name in (*METRICS, *metrics)]
    for field, metric in watched if config.metrics else ():
        check_choice(f"metric in {field}", metric, names)


def _frozen_updates(config: Config, steps_per_epoch: int) -> int:
    return min(round(config.finetune.freeze_epochs * steps_per_epoch), schedules.LARGEST_STEP)


def _trunk(params: Any, head: tuple[str, ...]) -> Any:
    """A tree of the same structure: False in the submodules that match a pattern of `head`, True elsewhere."""
    new = {name for name in params if any(fnmatch.fnmatch(name, pattern) for pattern in head)}
    if not new:
        raise UserError(f"finetune.head={head} matches none of the network's submodules: {', '.join(params)}")
    return {name: jax.tree.map(lambda _, name=name: name not in new, node) for name, node in params.items()}


def variables_of(config: Config, model: nn.Module, inputs: Inputs, key: jax.Array) -> dict[str, Any]:
    """The network's first variables, {"params", "batch_stats"}, without the optimizer, which only training needs."""
    dtype = dtypes(config.compute_dtype)[1]
    return state.create_state(key, model, optax.identity(), inputs.image_shape, dtype=dtype).variables


def initial_key(config: Config, named_streams: bool = True) -> jax.Array:
    """The random key of a run's initial weights.

    Args:
      named_streams: from the run's record. False for runs of early versions, which used the seed itself here and
        seed + 1 for training.
    """
    return state.stream(config.seed, "init") if named_streams else jax.random.key(config.seed)


def training_key(config: Config, named_streams: bool = True) -> jax.Array:
    """The random key of a run's training steps, see `initial_key`."""
    return state.stream(config.seed, "train") if named_streams else jax.random.key(config.seed + 1)
