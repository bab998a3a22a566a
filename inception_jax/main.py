"""`python -m inception_jax.main --config=NAME_OR_FILE`: reads the flags, then trains.

JAX is imported only after the flags have been read: help and mistakes are answered at once.
"""

import contextlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.config import Config, default_config
from inception_jax.config_files import field_names, find_config, load_config, override, shipped_configs
from inception_jax.errors import UserError

USAGE = """\
Trains a network as a config says, or goes on with a run that was stopped.

usage: {program} --config=NAME_OR_FILE [--workdir=FOLDER] [--config.FIELD=VALUE ...]

  --config        a config file, or the name of a shipped one: {configs}
  --workdir       the run's folder, by default runs/<the config's name>; a run that is there goes on
  --config.FIELD  sets a field of the config

examples:
  {program} --config=googlenet_digits
  {program} --config=googlenet_cifar10 --config.schedule.learning_rate=0.05 --workdir=runs/slower
  {program} --config=my_experiment.py --config.model.name=my_module:MyNet --config.evaluate.splits=validation,test

fields (their meanings and defaults: {reference}):
{fields}
"""


def parse_flags(argv: list[str]) -> tuple[Config, Path]:
    """The config, with the fields that `argv` sets, and the run's folder.

    Raises:
      UserError: an unknown config, flag or field, a value of the wrong type, or a config file that fails.
    """
    values = flags.FlagValues()  # our own, so that main() can be called more than once
    values.set_gnu_getopt(True)
    flags.DEFINE_string("config", "", "", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    try:
        rest = values(["", *argv], known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    name = values["config"].value
    if not name:
        raise UserError(f"--config=NAME_OR_FILE is missing. Shipped configs: {', '.join(shipped_configs())}")
    path = find_config(name)
    config = load_config(path)
    override(config, rest)
    return config, Path(values["workdir"].value or Path("runs", path.stem))


def _usage(program: str) -> str:
    sections: dict[str, list[str]] = {}
    for field in field_names(default_config()):
        section, _, name = field.rpartition(".")
        sections.setdefault(section, []).append(name)
    lines = [f"{f'{section}.' if section else '':15} {', '.join(names)}" for section, names in sections.items()]
    wrapped = [textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 18) for line in lines]
    return USAGE.format(
        program=program,
        configs=", ".join(shipped_configs()),
        reference=Path(__file__).with_name("config.py"),
        fields="\n".join(wrapped),
    )


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows what the package logs, once: libraries give the root logger a handler, too."""
    logger, handler = logging.getLogger("inception_jax"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(level)
        logger.removeHandler(handler)


def main(argv: list[str] | None = None, program: str = "python -m inception_jax.main") -> int:
    """Trains as the flags say (`argv` without the program's name; None: this process's).

    Returns the exit code: 0 after a finished run, 2 for a mistake in what was given, 3 for a loss that is not finite,
    130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"--help", "-help", "-h"}.intersection(argv):
        print(_usage(program))
        return 0
    if not flags.FLAGS.is_parsed():  # Grain and TFDS look at absl's own flags
        flags.FLAGS.mark_as_parsed()
    try:
        config, workdir = parse_flags(argv)
        process.use_compilation_cache()
        from inception_jax import train

        try:
            with log_to_stderr():
                train.train_and_evaluate(config, workdir, clear_caches=True)
        except train.Interrupted as stop:
            return _say(str(stop), 130)
        except train.NonFiniteLoss as error:
            return _say(f"error: {error}", 3)
    except UserError as error:
        return _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say("interrupted before training began", 130)
    return 0


def _say(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    process.tune()
    sys.exit(main())
