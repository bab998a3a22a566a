"""`python -m inception_jax.main --config=NAME_OR_FILE`: reads the flags, then trains.

JAX is imported only after the flags have been read: help and mistakes are answered at once.
"""

import contextlib
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags

from inception_jax import multihost, process
from inception_jax.config import Config, default_config, field_names
from inception_jax.config_files import find_config, load_config, override, shipped_configs
from inception_jax.errors import UserError, WriteError
from inception_jax.process import FINISHED, INTERRUPTED, MISTAKE, NOT_FINITE, NOT_WRITTEN, TERMINATED

USAGE = """\
Trains a network as a config says, or goes on with a run that was stopped.

usage: {program} --config=NAME_OR_FILE [--workdir=FOLDER] [--config.FIELD=VALUE ...]

  --config        a config file, or the name of a shipped one: {configs}
  --workdir       the run's folder, by default runs/<the config's name>; a run that is there goes on
  --config.FIELD  sets a field of the config
  --multihost     several processes train together: JAX finds them through Slurm or Open MPI; elsewhere name them:
                  --coordinator=HOST:PORT --num_processes=N --process_id=I (or ${environment}COORDINATOR, ...)

examples:
  {program} --config=googlenet_digits
  {program} --config=googlenet_cifar10 --config.schedule.learning_rate=0.05 --workdir=runs/slower
  {program} --config=my_experiment.py --config.model.name=my_module:MyNet --config.evaluate.splits=validation,test

exit codes: 0 finished, 2 a mistake in what was given, 3 loss not finite, 4 a file could not be written, 5 another
process of the run died, 75 stopped by SIGTERM and saved (start it again), 130 stopped by Ctrl-C

fields (their meanings and defaults: {reference}):
{fields}
"""


class Flags(NamedTuple):
    """What the command line says: the config with the fields that it sets, the run's folder, and of which processes."""

    config: Config
    workdir: Path
    group: multihost.Group | None


def parse_flags(argv: list[str]) -> Flags:
    """What `argv`, without the program's name, says.

    Raises:
      UserError: an unknown config, flag or field, a value of the wrong type, or a config file that fails.
    """
    values = flags.FlagValues()  # our own, so that main() can be called more than once
    values.set_gnu_getopt(True)
    flags.DEFINE_string("config", "", "", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_boolean("multihost", False, "", flag_values=values)
    try:
        # Numbers in the environment are read as the flags are.
        flags.DEFINE_string(
            "coordinator", os.environ.get(f"{multihost.ENVIRONMENT}COORDINATOR"), "", flag_values=values
        )
        for name in ("num_processes", "process_id"):
            default = os.environ.get(f"{multihost.ENVIRONMENT}{name.upper()}")
            flags.DEFINE_integer(name, default, "", lower_bound=0, flag_values=values)  # pyright: ignore[reportArgumentType]
        rest = values(["", *argv], known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    name = values["config"].value
    if not name:
        raise UserError(f"--config=NAME_OR_FILE is missing. Shipped configs: {', '.join(shipped_configs())}")
    path = find_config(name)
    config = load_config(path)
    override(config, rest)
    group = multihost.Group(values["coordinator"].value, values["num_processes"].value, values["process_id"].value)
    several = values["multihost"].value or group.coordinator
    return Flags(config, Path(values["workdir"].value or Path("runs", path.stem)), group if several else None)


def _usage(program: str) -> str:
    sections: dict[str, list[str]] = {}
    for field in field_names(default_config()):
        section, _, name = field.rpartition(".")
        sections.setdefault(section, []).append(name)
    lines = [f"{f'{section}.' if section else '':15} {', '.join(names)}" for section, names in sections.items()]
    wrapped = [textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 18) for line in lines]
    return USAGE.format(
        program=program,
        environment=multihost.ENVIRONMENT,
        configs=", ".join(shipped_configs()),
        reference=Path(__file__).with_name("config.py"),
        fields="\n".join(wrapped),
    )


@contextlib.contextmanager
def log_to_stderr(level: int = logging.INFO, prefix: str = "") -> Iterator[None]:
    """Shows what the package logs, once: libraries give the root logger a handler, too."""
    logger, handler = logging.getLogger("inception_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(before)
        logger.removeHandler(handler)


def main(argv: list[str] | None = None, program: str = "python -m inception_jax.main") -> int:
    """Trains as the flags say (`argv` without the program's name; None: this process's); returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if {"--help", "-help", "-h"}.intersection(argv):
        print(_usage(program))
        return FINISHED
    if not flags.FLAGS.is_parsed():  # TFDS looks at absl's own flags
        flags.FLAGS.mark_as_parsed()
    with terminable():
        try:
            code = _run(parse_flags(argv))
        except WriteError as error:
            code = _say(f"error: {error}", NOT_WRITTEN)
        except UserError as error:
            code = _say(f"error: {error}", MISTAKE)
        except KeyboardInterrupt:
            code = _say("interrupted before training began", INTERRUPTED)
        except Terminated:
            code = _say("terminated: there was nothing to save", TERMINATED)
        multihost.end_after_failure(code)
    return code


def _run(given: Flags) -> int:
    process.use_compilation_cache()
    if given.config.get("deterministic"):
        process.make_deterministic()  # here, since to join the others is to use a device
    from inception_jax import train

    with multihost.joined(given.group):
        try:
            level, prefix = logging.INFO, ""
            if not multihost.is_first():
                level, prefix = logging.WARNING, f"process {multihost.index()}: "
            with log_to_stderr(level, prefix):
                train.train_and_evaluate(given.config, given.workdir, clear_caches=True)
        except train.Interrupted as stop:
            code = TERMINATED if stop.signal == signal.SIGTERM else INTERRUPTED
            return _say(str(stop), code) if multihost.is_first() else code
        except train.NonFiniteLoss as error:
            return _say(f"error: {error}", NOT_FINITE) if multihost.is_first() else NOT_FINITE
    return FINISHED


class Terminated(BaseException):
    """SIGTERM came, and training does not handle it: it was before, or after it."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Where training does not handle SIGTERM, it raises Terminated, for the exit code that asks for a new start."""

    def terminate(number, frame) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    process.tune()
    process.leave(main())
