"""Checks of a config before anything is computed: types, the rules of single fields, and those between fields."""

import logging
from typing import Any

from inception_jax.config.fields import BY_NAME, FIELDS, Config, field_names, get_field
from inception_jax.config.rules import SEED
from inception_jax.errors import UserError, check_choice, unknown_name
from inception_jax.registry import is_outside

logger = logging.getLogger(__name__)

# What the type of a field is called in messages.
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "values with commas between them",
}
# Steps and counts are int32, rates and strengths float32 inside the jitted step: 0, and what neither overflows nor
# underflows there. Seeds are the exception.
LARGEST_INT = 2**31 - 1
SMALLEST_FLOAT, LARGEST_FLOAT = 1.2e-38, 3.4e38
METRICS = ("loss", "top1", "top5")  # of every evaluated split


def check_types(config: Config, *, others: bool = False) -> None:
    """Checks that the config has all fields, each of its type, and no others except those that `may_be_new`.

    Args:
      others: whether other fields are allowed anyway.

    Raises:
      UserError: it does not; the message names the first such field.
    """
    if not others:
        for name in sorted(set(field_names(config)) - BY_NAME.keys()):
            if not may_be_new(config, name):
                raise unknown_name("field", name, BY_NAME)
    check_fields(config)
    for name, field in sorted(BY_NAME.items()):
        value = get_field(config, name)
        if not ((field.optional and value is None) or has_type(value, field.kind)):
            raise UserError(f"{name}={value!r} is not allowed: it must be {KINDS[field.kind]}")
        if field.kind is str and value and min(value) < " ":  # no path has them on purpose, and messages are one line
            raise UserError(f"{name}={value!r} is not allowed: it must be text without control characters")


def may_be_new(config: Config, name: str) -> bool:
    """Whether the config may have a field that is not in the table: an option of a network, or an argument of its
    optimizer or schedule if that is from outside the package."""
    section = name.partition(".")[0]
    return section == "model" or (section in ("optimizer", "schedule") and is_outside(config[section].name))


def check_fields(config: Config) -> None:
    """Raises UserError unless the config has all fields."""
    missing = sorted(BY_NAME.keys() - set(field_names(config)))
    if missing:
        raise UserError(f"the config has no field {missing[0]}: start it from inception_jax.config.default_config()")


def has_type(value: Any, kind: type) -> bool:
    """Whether a field of that type may have the value: True is not a number, and whole numbers are numbers."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def validate(config: Config) -> None:
    """Checks the whole config: every field, and the fields that depend on one another.

    Raises:
      UserError: a value is not allowed; the message names the first such field, and what is allowed.
    """
    check_types(config)
    for name in field_names(config):
        _check_size(name, get_field(config, name))
    for field in FIELDS:
        value = get_field(config, field.name)
        if field.choices and value not in field.choices and not (field.outside and is_outside(value)):
            others = ("optax.NAME", "module:Name") if field.outside else ()
            raise unknown_name(field.name, str(value), (*field.choices, *others))
    for field in FIELDS:
        value = get_field(config, field.name)
        if field.rule and value is not None and not field.rule.holds(value):
            unset = ", or unset" if field.optional else ""
            raise UserError(f"{field.name}={value!r} is not allowed: it must be {field.rule.text}{unset}")
        if field.source and value is not None and not value.strip():
            raise UserError(f"{field.name} is empty: it must be a path, or None")
    _check_batch(config)
    _check_schedule(config)
    _check_augment(config.data)
    _check_splits(config)
    metrics = [f"{split}_{metric}" for split in config.evaluate.splits for metric in METRICS]
    if metrics:
        _check_watched(config, metrics)
    else:
        _check_nothing_is_watched(config)


def _check_size(name: str, value: Any) -> None:
    """Raises UserError for a number that the types of the computation cannot represent."""
    if isinstance(value, tuple | list):
        for item in value:
            _check_size(name, item)
    elif isinstance(value, int) and abs(value) > LARGEST_INT and not _is_seed(name):
        raise UserError(f"{name}={value} is not allowed: whole numbers must be at most {LARGEST_INT}")
    elif isinstance(value, float) and value != 0 and not SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT:
        raise UserError(
            f"{name}={value} is not allowed: numbers must be 0, or from {SMALLEST_FLOAT} to {LARGEST_FLOAT} in size"
        )


def _is_seed(name: str) -> bool:
    return name in BY_NAME and BY_NAME[name].rule is SEED


def _check_batch(config: Config) -> None:
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into accumulation_steps="
            f"{config.accumulation_steps} equal micro-batches: choose a multiple"
        )


def _check_schedule(config: Config) -> None:
    schedule = config.schedule
    if schedule.warmup_epochs > config.num_epochs:
        logger.warning(
            "schedule.warmup_epochs=%g is longer than the run, num_epochs=%d: the rate never reaches "
            "schedule.learning_rate=%g",
            schedule.warmup_epochs,
            config.num_epochs,
            schedule.learning_rate,
        )
    if schedule.name != "plateau":
        return
    if schedule.factor >= 1:
        raise UserError(
            f"schedule.factor={schedule.factor} is not allowed with schedule.name='plateau': it must be less than 1"
        )
    if schedule.threshold_mode == "relative" and schedule.threshold >= 1:
        raise UserError(
            f"schedule.threshold={schedule.threshold} is not allowed with schedule.threshold_mode='relative', of which "
            "it is a share: it must be less than 1"
        )


def _check_augment(data: Config) -> None:
    if not data.augment.crop_originals:
        return
    if not data.augment.random_resized_crop:
        raise UserError("data.augment.crop_originals needs data.augment.random_resized_crop, e.g. (0.08, 1.0)")
    if data.pipeline == "memory":
        raise UserError(
            "data.augment.crop_originals is not allowed with data.pipeline='memory': each epoch has new crops"
        )


def _check_splits(config: Config) -> None:
    # The training split has its metrics already: the running means over each epoch.
    known = {split for split in config.data.splits if config.data.splits[split]} - {"train"}
    for name in ("evaluate.splits", "evaluate.final_splits"):
        for split in get_field(config, name):
            if split not in known:
                raise unknown_name(f"split in {name}", str(split), known)


def _check_watched(config: Config, metrics: list[str]) -> None:
    """Checks the fields that watch a metric, where there are metrics to watch."""
    watched = {"evaluate.watch": "evaluate.watch_mode"}
    if config.schedule.name == "plateau":
        watched["schedule.metric"] = "schedule.mode"
    for name, mode_name in watched.items():
        metric, mode = get_field(config, name), get_field(config, mode_name)
        if config.metrics and metric not in metrics:
            continue  # one of those, perhaps: their names are known once they are imported
        check_choice(f"metric in {name}", metric, metrics)
        better = "min" if metric.endswith("_loss") else "max"
        if mode != better:
            raise UserError(f"{mode_name}={mode!r} is not allowed with {name}={metric!r}: it must be {better!r}")
    if config.evaluate.stop_at > 1 and config.evaluate.watch.endswith(("_top1", "_top5")):
        raise UserError(
            f"evaluate.stop_at={config.evaluate.stop_at} is not allowed with evaluate.watch={config.evaluate.watch!r}, "
            "which is from 0 to 1"
        )


def _check_nothing_is_watched(config: Config) -> None:
    needing = {
        "schedule.name='plateau'": config.schedule.name == "plateau",
        "evaluate.stop_at": config.evaluate.stop_at,
        "evaluate.early_stopping_patience": config.evaluate.early_stopping_patience,
    }
    for what, needs in needing.items():
        if needs:
            raise UserError(f"{what} needs a split in evaluate.splits to watch")
