"""What `fit` takes as objects, where a config has names."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import clu.metrics
import jax
import optax

from inception_jax.config import Config
from inception_jax.errors import check_choice
from inception_jax.registry import name_of
from inception_jax.writers import Writer

Metrics = type[clu.metrics.Collection] | type[clu.metrics.Metric]
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]

# The fields of the config that arguments of `fit` replace; True: a tuple of names. For the others see `listeners`.
FIELDS = {
    "loss": ("loss.name", False),
    "metrics": ("metrics", True),
    "optimizer": ("optimizer.name", False),
    "schedule": ("schedule.name", False),
    "augment_before": ("data.augment.before", True),
    "augment_after": ("data.augment.after", True),
}


class Extensions(TypedDict, total=False):
    """Parts of training from outside the package, see "Extending training".

    Writers and callbacks are added to those that the config names; every other part replaces the config's.

    Attributes:
      loss: (logits (b, k), labels (b,) or (b, k)) -> (b,).
      metrics: one or several clu.metrics.Collection or Metric classes.
      optimizer: the factory of an Optax optimizer; further arguments are fields of `config.optimizer`.
      schedule: step -> learning rate, or the factory of such a function with arguments in `config.schedule`.
      augment_before: one or several functions (key, images) -> images, before the package's augmentation.
      augment_after: the same, after the package's augmentation.
      writers: each a `writers.Writer`, or a class or function that returns one for the run's folder.
      callbacks: each with any of the methods of `callbacks.Callback`, or a class that is called without arguments.
    """

    loss: Callable[..., jax.Array]
    metrics: Metrics | Sequence[Metrics]
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Callable[..., Any]
    augment_before: Augmentation | Sequence[Augmentation]
    augment_after: Augmentation | Sequence[Augmentation]
    writers: Sequence[Writer | Callable[[Path], Writer]]
    callbacks: Sequence[Any]


def record(config: Config, extensions: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The config with the names of the given objects, see `registry.name_of`, and the objects by field.

    Raises:
      UserError: an argument of `fit` does not exist.
    """
    config, given = copy.deepcopy(config), {}
    for argument, value in extensions.items():
        check_choice("argument of fit", argument, Extensions.__annotations__)
        if argument not in FIELDS or value is None:
            continue
        field, several = FIELDS[argument]
        *sections, last = field.split(".")
        section = config
        for name in sections:
            section = section[name]
        if several:
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
        section[last] = tuple(map(name_of, value)) if several else name_of(value)
        given[field] = value
    return config, given
