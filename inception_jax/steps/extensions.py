"""Parts of training from outside the package: losses, metrics, optimizers, schedules and augmentation.

A config names them as "module:Name" or "optax.NAME", and `train.fit` takes them as objects. Each is tried out on shapes
before the first step, so that a mistake is answered with a line that names it.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import clu.metrics
import jax
import numpy as np
import optax
from jax import numpy as jnp

from inception_jax import registry
from inception_jax.errors import UserError, unknown_name
from inception_jax.steps import losses, metrics

LONGEST = 300  # characters of an exception's message that are shown
ITSELF = ("step", "count")  # the first parameter of a function that is a schedule, rather than one that returns one
METRIC = "metric"  # the kind of part that is a class


class Part(NamedTuple):
    """An object from outside the package.

    Attributes:
      kind: what it is used as, for messages.
      name: as the config has it.
      value: the object.
    """

    kind: str
    name: str
    value: Any

    def error(self, what: str) -> UserError:
        """The error that names the part and what is wrong with it."""
        return UserError(f"{self.kind} {self.name!r} {what}")

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls a function of the part. Raises UserError, with the part's name, if it raises an exception."""
        try:
            return function(*arguments, **options)
        except UserError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no message"]
            raise self.error(f"raises {type(error).__name__}: {lines[0][:LONGEST]}") from error


def find(kind: str, name: str, given: Any = None) -> Part:
    """The part of this name, or the object that was given in its place.

    Raises:
      UserError: the name does not lead to an object, or to a part of the standard library.
    """
    if given is None and name.endswith(registry.GIVEN):
        raise UserError(f"the {kind} is {name!r}, which this command does not have: name it as module:Name")
    if given is None:
        given = _of_optax(kind, name) if name.startswith("optax.") else registry.resolve(kind, name, {})
    part = Part(kind, name, given)
    # Nothing like os.abort is called because somebody has mistyped a name.
    functions = (given, type(given).__call__) if callable(given) and not inspect.isclass(given) else ()
    if kind != METRIC and not any(map(registry.is_function, functions)):
        raise part.error(f"is {_shown(given)}, which is not a function")
    return part


def _of_optax(kind: str, name: str) -> Any:
    """An attribute of Optax. Raises UserError, with those of its kind, if there is none."""
    found: Any = optax
    for attribute in name.split(".")[1:]:
        found = getattr(found, attribute, None)
    if found is None:
        public = {key: value for key, value in vars(optax).items() if inspect.isfunction(value) and key[0] != "_"}
        rates = (key for key, value in public.items() if "learning_rate" in inspect.signature(value).parameters)
        schedules = (key for key in public if key.endswith(("_schedule", "_decay")))
        known = {"optimizer": rates, "schedule": schedules}.get(kind, vars(optax.losses).keys() & public.keys())
        raise unknown_name(kind, name, (f"optax.{key}" for key in known))
    return found


# Losses


class Loss(NamedTuple):
    """A loss from outside the package, called as `losses.cross_entropy` is.

    Attributes:
      of_classes: whether its labels are class indices (b,) where those are known, without mixing and label smoothing;
        otherwise they always are class probabilities (b, k).
    """

    part: Part
    of_classes: bool

    def __call__(self, logits: Any, labels: Any, *, label_smoothing: float = 0.0) -> Any:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        classes = logits.shape[-1]
        if labels.ndim == 1 and (label_smoothing or not self.of_classes):
            labels = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
        if label_smoothing:
            labels = (1 - label_smoothing) * labels + label_smoothing / classes
        return self.part.call(self.part.value, logits, labels).astype(logits.dtype)


def make_loss(part: Part, num_classes: int, dtype: Any, *, probabilities: bool) -> Loss:
    """A loss, after a trial with class indices and, if it does not take them, with class probabilities as labels.

    Args:
      part: a function (logits (b, k), labels) -> (b,); labels are (b,) or (b, k).
      dtype: of the logits.
      probabilities: whether labels are mixed or smoothed, so that they have to be probabilities.

    Raises:
      UserError: it takes neither, or does not return a loss per example.
    """
    batch = num_classes + 1  # not num_classes, so that no wrong pair of shapes is broadcast
    logits = jax.ShapeDtypeStruct((batch, num_classes), dtype)
    kinds = {"class probabilities (b, k)": logits}
    if not probabilities:
        kinds = {"class indices (b,)": jax.ShapeDtypeStruct((batch,), jnp.int32)} | kinds
    problems = []
    for kind, labels in kinds.items():
        try:
            found = part.call(jax.eval_shape, part.value, logits, labels)
        except UserError as error:
            problems.append(f"with {kind} as labels: {error}")
            continue
        if _is_array(found, (batch,)) and jnp.issubdtype(found.dtype, jnp.floating):
            return Loss(part, labels.ndim == 1)
        problems.append(f"with {kind} as labels it returns {_shown(found)}")
    batch_is = f"for logits (b, k) = ({batch}, {num_classes}) it must return a loss per example, ({batch},)"
    raise part.error(f"cannot be used: {batch_is}; {'; '.join(problems)}")


# Metrics


def metric_classes(parts: Sequence[Part]) -> dict[str, type[clu.metrics.Metric]]:
    """The classes of metrics by their names: of a Collection those of its fields, of a Metric its own in snake case.

    Raises:
      UserError: a part is neither; two metrics have one name, or one of the package's.
    """
    found: dict[str, type[clu.metrics.Metric]] = {}
    for part in parts:
        for name, metric in _classes_of(part).items():
            if name in found or name in metrics.NAMES:
                raise part.error(f"has a metric {name!r}, which there is already: give it another name")
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise part.error(f"has a metric {name!r}: names must consist of ASCII letters, digits and _")
            found[name] = metric
    return found


def _classes_of(part: Part) -> dict[str, type[clu.metrics.Metric]]:
    if not (inspect.isclass(part.value) and issubclass(part.value, clu.metrics.Metric | clu.metrics.Collection)):
        raise part.error(f"is {_shown(part.value)}, which is not a clu.metrics.Collection or Metric class")
    if issubclass(part.value, clu.metrics.Metric):
        return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part.value.__name__).lower(): part.value}
    fields: dict[str, Any] = {}
    for base in reversed(part.value.__mro__):
        fields |= part.call(inspect.get_annotations, base, eval_str=True)
    fields = {name: metric for name, metric in fields.items() if not name.startswith("_")}
    for name, metric in fields.items():
        if not (inspect.isclass(metric) and issubclass(metric, clu.metrics.Metric)):
            raise part.error(f"has the field {name!r}, which is not a clu.metrics.Metric class")
    if not fields:
        raise part.error("has no metrics")
    return fields


def check_metrics(classes: Mapping[str, type[clu.metrics.Metric]], num_classes: int, dtype: Any) -> None:
    """Computes each metric of two examples, alone and with padding.

    Raises:
      UserError: a metric raises an exception, is not a number, has sums whose shapes change, or counts padding.
    """
    logits = np.zeros((4, num_classes), dtype)
    logits[0, 0], logits[1:, -1] = 1.0, 3.0  # of the padding, all are wrong
    labels = jnp.array([0, num_classes - 1, 0, 0], jnp.int32)
    outputs = {"logits": jnp.asarray(logits), "labels": labels, "mask": jnp.array([True, True, False, False])}
    outputs["loss"] = losses.cross_entropy(outputs["logits"], labels)
    for name, metric in classes.items():
        part = Part(METRIC, name, metric)
        compute = jax.jit(lambda outputs, metric=metric: metric.from_model_output(**outputs))
        padded = part.call(compute, outputs)
        alone = part.call(compute, jax.tree.map(lambda array: array[:2], outputs))
        if not isinstance(padded, metric):
            raise part.error(f"is made as {_shown(padded)}: from_model_output must return a {metric.__name__}")
        merged = part.call(lambda metric=metric, sums=padded: metric.empty().merge(sums).merge(sums))
        if _layout(merged) != _layout(padded):
            what = f"{_layout(padded)} become {_layout(merged)} when they are merged"
            raise part.error(f"must have sums of fixed shapes, but {what}")
        value, expected = part.call(padded.compute), part.call(alone.compute)
        if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
            raise part.error(f"must be a single number, but compute() returns {_shown(value)}")
        if not np.allclose(value, expected, rtol=1e-4, equal_nan=True):
            raise part.error("counts padding: it must leave out the examples whose mask is False")


def _layout(sums: Any) -> str:
    return ", ".join(f"{np.shape(leaf)}" for leaf in jax.tree.leaves(sums)) or "nothing"


# Optimizers and schedules


class OptimizerRule(NamedTuple):
    """An optimizer from outside the package.

    Attributes:
      transformation: of gradients.
      has_rate: whether it applies the learning rate itself: `learning_rate` is one of its factory's arguments.
      decays: whether it applies weight decay itself: `weight_decay` is.
    """

    transformation: optax.GradientTransformation
    has_rate: bool
    decays: bool


def make_rule(part: Part, schedule: Any, own: Mapping[str, Any], table: Mapping[str, Any], mask: Any) -> OptimizerRule:
    """Calls an optimizer's factory, such as `optax.lion`.

    Args:
      schedule: step -> learning rate, its argument `learning_rate` if it has one.
      own: arguments that only this factory has.
      table: fields of every optimizer, which are given to a factory that has arguments of these names.
      mask: parameters -> which are decayed, for the argument `mask` or `weight_decay_mask` beside `weight_decay`.

    Raises:
      UserError: an argument is unknown or missing; it does not return an optax.GradientTransformation.
    """
    known = _parameters(part)
    fixed = {"learning_rate": schedule}
    if "weight_decay" in known:
        fixed |= {"mask": mask, "weight_decay_mask": mask}
    made = part.call(part.value, **_arguments(part, "optimizer", own, table, fixed))
    if not isinstance(made, optax.GradientTransformation):
        what = "it must return an optax.GradientTransformation, such as optax.lion or a chain"
        raise part.error(f"returns {_shown(made)}: {what}")
    rule = optax.GradientTransformationExtraArgs(
        partial(part.call, made.init), partial(part.call, optax.with_extra_args_support(made).update)
    )
    return OptimizerRule(rule, "learning_rate" in known, "weight_decay" in known)


def check_update(part: Part, optimizer: optax.GradientTransformation, params: Any) -> None:
    """Raises UserError unless an optimizer's updates are like the parameters, and its state keeps its shapes."""
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    for what, found, expected in (("updates", updates, params), ("a state", after, state)):
        if _shapes(found) != _shapes(expected):
            raise part.error(f"returns {what} of other shapes or types than it was given")


def make_schedule(
    part: Part, own: Mapping[str, Any], table: Mapping[str, Any], facts: Mapping[str, Any]
) -> Callable[[Any], Any]:
    """The schedule that a factory returns, such as `optax.cosine_decay_schedule`, or that the function itself is.

    Args:
      part: a factory; or, if its first parameter is called step or count, the schedule itself.
      own, table: see `make_rule`.
      facts: further arguments, for a factory that has them: steps_per_epoch, total_steps and num_epochs.

    Raises:
      UserError: an argument is unknown or missing; it is not a function from the step to a number.
    """
    first = next(iter(_parameters(part)), None)
    known = {**table, **{name: value for name, value in facts.items() if name not in own}}
    if first in ITSELF:
        options = _arguments(part, "schedule", own, known, {first: None})
        schedule = partial(part.call, part.value, **{name: options[name] for name in options if name != first})
    else:
        schedule = part.call(part.value, **_arguments(part, "schedule", own, known, {}))
    if not callable(schedule):
        raise part.error(f"returns {_shown(schedule)}: it must return a function from the step to the learning rate")
    found = part.call(jax.eval_shape, schedule, jax.ShapeDtypeStruct((), jnp.int32))
    if not _is_array(found, ()):
        raise part.error(f"returns {_shown(found)} for a step: the learning rate must be a single number")
    return schedule


def _parameters(part: Part) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name."""
    found = part.call(inspect.signature, part.value).parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in found.items() if parameter.kind in by_name}


def _arguments(
    part: Part, section: str, own: Mapping[str, Any], table: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a factory, from a section of the config, and `fixed` ones, which it may not set."""
    known = _parameters(part)
    settable = [name for name in known if name not in fixed]
    says = f"its arguments are {', '.join(settable) or 'none'}, as fields of the section {section}"
    unknown = [name for name in own if name not in settable]
    anything = inspect.Parameter.VAR_KEYWORD in {
        parameter.kind for parameter in inspect.signature(part.value).parameters.values()
    }
    if unknown and not (anything and unknown[0] not in fixed):
        raise part.error(f"cannot take {section}.{unknown[0]}: {says}")
    found = {name: value for name, value in {**table, **fixed}.items() if name in known} | dict(own)
    missing = [name for name, each in known.items() if each.default is inspect.Parameter.empty and name not in found]
    if missing:
        raise part.error(f"needs {section}.{missing[0]}: {says}")
    return found


# Augmentation


def check_augmentation(part: Part, image_shape: tuple[int, int, int], dtype: Any) -> None:
    """Raises UserError unless a function (key, images) returns images of the same shape and type."""
    images = jax.ShapeDtypeStruct((2, *image_shape), dtype)
    found = part.call(jax.eval_shape, part.value, jax.eval_shape(lambda: jax.random.key(0)), images)
    if not _is_array(found, images.shape) or found.dtype != images.dtype:
        raise part.error(f"returns {_shown(found)}, but must return images as it is given them, {_shown(images)}")


@no_type_check  # what is shaped like an array is not one
def _is_array(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct) and value.shape == shape


@no_type_check
def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _shown(value: Any) -> str:
    """A value in a few words: arrays by type and shape."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"a {type(value).__name__}"
