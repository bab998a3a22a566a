"""What listens to a run: writers and callbacks, named in the config or given to `fit`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax import registry
from inception_jax.config import Config
from inception_jax.distributed import multihost
from inception_jax.errors import UserError, described
from inception_jax.runs.metrics_log import CsvWriter
from inception_jax.train.callbacks import Callbacks
from inception_jax.writers.group import Writers
from inception_jax.writers.open import WRITERS, open_writer, require_package

UNNAMED = "an object given to fit"


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The writers and callbacks of a run, created and ready to be called."""

    writers: Writers
    callbacks: Callbacks


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Writers and callbacks by name, not yet created: (name, object, class or function)."""

    writers: Sequence[tuple[str, Any]]
    callbacks: Sequence[tuple[str, Any]]
    pictures: bool

    @classmethod
    def of(cls, config: Config, given: Mapping[str, Any] | None = None) -> "Listeners":
        """Those that the config names, and those `given` to `fit`.

        Raises:
          UserError: one does not exist, or its package is not installed.
        """
        given = given or {}
        named: tuple[str, ...] = (*config.log.to, *(["tensorboard"] if config.log.tensorboard else []))
        names = list(dict.fromkeys(named))
        for name in names:
            require_package(name)
        writers = _found("writer", names, WRITERS, given.get("writers", ()))
        callbacks = _found("callback", config.callbacks, {}, given.get("callbacks", ()))
        return cls(writers, callbacks, bool(config.log.to or given.get("writers")))

    def open(self, folder: Path) -> Hooks:
        """Creates them in the first process; in others, which neither write nor call, there are none.

        Raises:
          UserError: one cannot be created, or lacks what it needs.
        """
        if not multihost.is_first():
            return Hooks(Writers(None, ()), Callbacks(()))
        callbacks = Callbacks([(name, _created(name, callback)) for name, callback in self.callbacks])
        writers = [(name, open_writer(name, writer, folder)) for name, writer in self.writers]
        return Hooks(Writers(CsvWriter(folder), writers, pictures=self.pictures), callbacks)


def note(config: Config, given: Mapping[str, Any]) -> None:
    """Notes in the config, which is kept in the run's folder, what was given to `fit`."""
    for section, field, kind in ((config.log, "to", "writers"), (config, "callbacks", "callbacks")):
        section[field] = tuple(dict.fromkeys((*section[field], *map(name_of, given.get(kind, ())))))


def name_of(given: Any) -> str:
    """ "module:Name" of a class or function, or of an object's class; UNNAMED if others cannot import it."""
    name = registry.name_of(given if hasattr(given, "__qualname__") else type(given))
    return UNNAMED if name.endswith(registry.GIVEN) or name.startswith("__main__:") else name


def _found(kind: str, names: Sequence[str], known: Mapping[str, Any], given: Sequence[Any]) -> list[tuple[str, Any]]:
    """What is named and what is given; a name that only notes what is given is not looked up."""
    own = [(name_of(one), one) for one in given]
    noted = {name for name, _ in own}
    for name in names:
        if name == UNNAMED and name not in noted:
            raise UserError(
                f"the config notes a {kind} that was {UNNAMED}: give it again, or remove it from the config"
            )
        if not known and ":" not in name:
            raise UserError(f"{kind} {name!r} is not allowed: it must be module:Name")
    return [(name, registry.resolve(kind, name, known)) for name in names if name not in noted] + own


def _created(name: str, callback: Any) -> Any:
    if not isinstance(callback, type):
        return callback
    try:
        return callback()
    except Exception as error:
        raise UserError(f"callback {name}: without arguments it {described(error)}") from error
