"""`python -m inception_jax.main --config=NAME_OR_FILE`: reads the flags, then trains.

JAX is imported only after the flags have been read: help and mistakes are answered at once.
"""

import logging
import os
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from absl import flags

from inception_jax import files, multihost, process
from inception_jax.config import Config, default_config, field_names
from inception_jax.config_files import find_config_and_argument, load_config, override, shipped_configs
from inception_jax.distributed import watch
from inception_jax.errors import UserError
from inception_jax.process import FINISHED, INTERRUPTED, NOT_FINITE, TERMINATED
from inception_jax.text import say

USAGE = """\
Trains a network as a config says, or goes on with a run that was stopped.

usage: {program} --config=NAME_OR_FILE [--workdir=FOLDER] [--config.FIELD=VALUE ...]

  --config        a config file, or the name of a shipped one: {configs};
                  FILE:ARGUMENT gives its get_config() an argument
  --workdir       the run's folder, by default runs/<the config's name>; a run that is there goes on
  --config.FIELD  sets a field of the config
  --wait          where another process trains in the folder, wait for it to end; else that is a mistake
  --trust-code    a run in init_from may name a network outside the package, where the config names none
  --multihost     several processes train together: JAX finds them through Slurm or Open MPI; elsewhere name them:
                  --coordinator=HOST:PORT --num_processes=N --process_id=I (or ${environment}COORDINATOR, ...)

examples:
  {program} --config=googlenet_digits
  {program} --config=googlenet_cifar10 --config.schedule.learning_rate=0.05 --workdir=runs/slower
  {program} --config=my_experiment.py --config.model.name=my_module:MyNet --config.evaluate.splits=validation,test

exit codes: 0 finished, 2 a mistake in what was given, 3 loss not finite, 4 a file could not be written, 5 another
process of the run died, or one that decodes pictures, or training stood still, 6 stopped at once by a second Ctrl-C,
without saving, 75 stopped by SIGTERM and saved (start it again), 130 stopped by Ctrl-C and saved

fields (their meanings and defaults: {reference}):
{fields}
"""


class Flags(NamedTuple):
    """What the command line says: the config with the fields that it sets, the run's folder, and of which processes.

    Attributes:
      wait: for another process that trains in the folder.
    """

    config: Config
    workdir: Path
    group: multihost.Group | None
    wait: bool = False


def parse_flags(argv: list[str]) -> Flags:
    """What `argv`, without the program's name, says.

    Raises:
      UserError: an unknown config, flag or field, a value of the wrong type, or a config file that fails.
    """
    values = flags.FlagValues()  # our own, so that main() can be called more than once
    values.set_gnu_getopt(True)
    flags.DEFINE_string("config", "", "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_boolean("multihost", False, "", flag_values=values)
    flags.DEFINE_boolean("wait", False, "", flag_values=values)
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


def main(argv: list[str] | None = None, program: str = "python -m inception_jax.main") -> int:
    """Trains as the flags say (`argv` without the program's name; None: this process's); returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    trust_code, argv = "--trust-code" in argv, [argument for argument in argv if argument != "--trust-code"]
    if not flags.FLAGS.is_parsed():  # TFDS looks at absl's own flags
        flags.FLAGS.mark_as_parsed()
    code = FINISHED
    with process.terminable(), multihost.ended_after_failure():
        try:
            with process.printing():
                code = _run(argv, program, trust_code)
        except UserError as error:
            code = process.say(f"error: {error}", process.exit_code(error))
        except KeyboardInterrupt as stop:  # of training it says more, see train.StoppedAtOnce
            code = process.say(str(stop) or "interrupted: there was nothing to save", process.exit_code(stop))
        except process.Terminated:
            code = process.say("terminated: there was nothing to save", TERMINATED)
        multihost.end_after_failure(code)
    return code


def _run(argv: list[str], program: str, trust_code: bool) -> int:
    if {"--help", "-help", "-h"}.intersection(argv):
        say(_usage(program))
        return FINISHED
    given = parse_flags(argv)
    process.use_compilation_cache()
    if given.config.get("deterministic"):
        process.make_deterministic()  # here, since to join the others is to use a device
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
