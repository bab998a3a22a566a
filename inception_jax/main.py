"""`python -m inception_jax.main --config=NAME_OR_FILE`: reads the flags, then trains.

JAX is imported only after the flags have been read, so that help and error messages appear at once.
"""

import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from inception_jax import files, process
from inception_jax.config import Config, reference
from inception_jax.config.files import find_config_and_argument, load_config, override, shipped_configs
from inception_jax.distributed import multihost, watch
from inception_jax.errors import UserError
from inception_jax.process import FINISHED, INTERRUPTED, NOT_FINITE, TERMINATED
from inception_jax.text import say

USAGE = """\
Trains a network as a config describes, or resumes a run that was stopped.

usage: {program} --config=NAME_OR_FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
       {program} --help [SECTION]

  --config        a config file, or the name of a shipped one:
                  {configs};
                  FILE:ARGUMENT passes an argument to its get_config(); as the first argument, NAME_OR_FILE is enough
  --workdir       directory of the run, by default runs/<name of the config>; an existing run is resumed
  --config.FIELD  sets a field of the config; None unsets a field that is optional
  --help SECTION  describes the fields of one section:
                  {sections}
  --wait          wait while another process trains in the directory, instead of ending with an error
  --trust-code    let the run in init_from name a network outside the package, if the config names none
  --multihost     train with several processes, which JAX finds through Slurm or Open MPI; elsewhere name them:
                  --coordinator=HOST:PORT --num_processes=N --process_id=I (or {environment}COORDINATOR, ...)

examples:
  {program} googlenet_digits
  {program} --config=googlenet_cifar10 --config.schedule.learning_rate=0.05 --workdir=runs/slower
  {program} --config=my_experiment.py --config.model.name=my_module:MyNet --config.evaluate.splits=validation,test
  {program} --help optimizer

exit codes: 0 finished, 2 a mistake in what was given, 3 loss not finite, 4 a file could not be written, 5 another
process of the run or one that decodes pictures died, or training made no progress, 6 stopped at once by a second
Ctrl-C, without saving, 75 stopped by SIGTERM and saved (start it again), 130 stopped by Ctrl-C and saved

fields:

{fields}
"""
HELP = ("--help", "-help", "-h")
FLAG_WIDTH = 18  # columns reserved in USAGE for the name of a flag


class Flags(NamedTuple):
    """The parsed command line.

    Attributes:
      config: with the fields set on the command line.
      workdir: directory of the run.
      group: the processes that train together; None for one process.
      wait: whether to wait while another process trains in the directory.
    """

    config: Config
    workdir: Path
    group: multihost.Group | None
    wait: bool = False


def parse_flags(argv: list[str]) -> Flags:
    """Parses `argv`, without the name of the program.

    Raises:
      UserError: an unknown config, flag or field, a value of the wrong type, or a config file that fails.
    """
    values = flags.FlagValues()  # separate from absl's, so that main() can be called more than once
    values.set_gnu_getopt(True)
    flags.DEFINE_string("config", "", "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_boolean("multihost", False, "", flag_values=values)
    flags.DEFINE_boolean("wait", False, "", flag_values=values)
    named = argv[0] if argv and not argv[0].startswith("-") else ""  # NAME_OR_FILE without --config
    try:
        # Numbers from the environment are parsed like flags.
        flags.DEFINE_string(
            "coordinator", os.environ.get(f"{multihost.ENVIRONMENT}COORDINATOR"), "", flag_values=values
        )
        for name in ("num_processes", "process_id"):
            default = os.environ.get(f"{multihost.ENVIRONMENT}{name.upper()}")
            flags.DEFINE_integer(name, default, "", lower_bound=0, flag_values=values)  # pyright: ignore[reportArgumentType]
        rest = values(["", *argv[bool(named) :]], known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    name = values["config"].value or named
    if named and name != named:
        raise UserError(f"two configs are given, {named} and --config={name}")
    if not name:
        raise UserError(f"--config=NAME_OR_FILE is missing. Shipped configs: {', '.join(shipped_configs())}")
    path, argument = find_config_and_argument(name)
    config = load_config(path, argument)
    override(config, rest)
    group = multihost.Group(values["coordinator"].value, values["num_processes"].value, values["process_id"].value)
    several = values["multihost"].value or group.coordinator
    workdir = values["workdir"].value
    if workdir is None:
        of_argument = "" if argument is None else "-" + re.sub(r"[^\w.=-]+", "_", argument)
        workdir = Path("runs", path.stem + of_argument)
    workdir = files.expand(workdir, "--workdir")
    return Flags(config, workdir, group if several else None, bool(values["wait"].value))


def _help(argv: list[str], program: str) -> str | None:
    """The text for `--help`, `--help SECTION` or `--help=SECTION`; None if help is not requested.

    Raises:
      UserError: an unknown section.
    """
    for place, argument in enumerate(argv):
        flag, equals, section = argument.partition("=")
        if flag in HELP:
            following = argv[place + 1 : place + 2]
            if not equals and following and not following[0].startswith("-"):
                section = following[0]
            return reference.help_text(section) if section else _usage(program)
    return None


def _usage(program: str) -> str:
    return USAGE.format(
        program=program,
        environment=multihost.ENVIRONMENT,
        configs=_listed(shipped_configs()),
        sections=_listed(reference.section_names()),
        fields=reference.help_text(),
    )


def _listed(names: Iterable[str]) -> str:
    """The names on lines that continue the descriptions of flags."""
    return textwrap.fill(", ".join(names), reference.WIDTH - FLAG_WIDTH).replace("\n", "\n" + " " * FLAG_WIDTH)


def main(argv: list[str] | None = None, program: str = "python -m inception_jax.main") -> int:
    """Trains according to the flags and returns the exit code.

    Args:
      argv: the arguments without the name of the program; None: those of this process.
      program: the program's name in its help text.
    """
    argv = sys.argv[1:] if argv is None else argv
    trust_code, argv = "--trust-code" in argv, [argument for argument in argv if argument != "--trust-code"]
    if not flags.FLAGS.is_parsed():  # TFDS reads absl's own flags
        flags.FLAGS.mark_as_parsed()
    code = FINISHED
    with process.terminable(), multihost.ended_after_failure():
        try:
            with process.printing():
                code = _run(argv, program, trust_code)
        except UserError as error:
            code = process.say(f"error: {error}", process.exit_code(error))
        except KeyboardInterrupt as stop:  # during training it has a message, see train.StoppedAtOnce
            code = process.say(str(stop) or "interrupted: there was nothing to save", process.exit_code(stop))
        except process.Terminated:
            code = process.say("terminated: there was nothing to save", TERMINATED)
        multihost.end_after_failure(code)
    return code


def _run(argv: list[str], program: str, trust_code: bool) -> int:
    text = _help(argv, program)
    if text is not None:
        say(text)
        return FINISHED
    given = parse_flags(argv)
    process.use_compilation_cache()
    if given.config.get("deterministic"):
        process.make_deterministic()  # before the processes join, since joining uses a device
    from inception_jax import train

    with watch.progress(given.config.get("log", {}).get("watchdog_minutes", 0)), multihost.joined(given.group):
        try:
            level, prefix = logging.INFO, ""
            if not multihost.is_first():
                level, prefix = logging.WARNING, f"process {multihost.index()}: "
            with process.log_to_stderr(level, prefix):
                train.train_and_evaluate(
                    given.config, given.workdir, clear_caches=True, wait=given.wait, trust_code=trust_code
                )
        except train.Interrupted as stop:
            code = TERMINATED if stop.signal == signal.SIGTERM else INTERRUPTED
            return process.say(str(stop), code) if multihost.is_first() else code
        except train.NonFiniteLoss as error:
            return process.say(f"error: {error}", NOT_FINITE) if multihost.is_first() else NOT_FINITE
    return FINISHED


if __name__ == "__main__":
    process.tune()
    process.leave(main())
