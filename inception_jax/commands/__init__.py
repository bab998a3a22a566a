"""The console command `inception-jax`: one module per subcommand, with flags and printing only."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from typing import Any, NoReturn

from inception_jax import process
from inception_jax.errors import UserError, WriteError, unknown_name
from inception_jax.files import no_room

EXAMPLES = """\
examples:
  inception-jax train --config=googlenet_digits
  inception-jax evaluate runs/googlenet_digits
  inception-jax predict runs/googlenet_digits picture.jpg
  inception-jax COMMAND --help
"""
# Each is a module of this package, with "_" for "-".
COMMANDS = (
    "train", "find-lr", "evaluate", "predict", "inspect", "data", "export", "report", "runs", "compare", "serve",
    "study", "configs", "completion",
)  # fmt: skip
COMPLETING = "_ARGCOMPLETE"  # in the environment if a shell asks for completions


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = file or sys.stdout
        if stream:
            stream.write(message)  # argparse itself ignores errors here


def main(argv: list[str] | None = None) -> int:
    """Runs the subcommand in `argv` (None: this process's arguments); returns the exit code, see `process`."""
    if argv is None:
        if COMPLETING not in os.environ:  # Tab should not wait for a restart
            process.tune()
        process.leave(main(sys.argv[1:]))
    parser = _make_parser(argv)
    if COMPLETING in os.environ:
        from inception_jax.commands import completion

        completion.answer(parser)
    code = process.FINISHED
    try:
        with process.printing():
            if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
                raise unknown_name("command", argv[0], COMMANDS)
            args, fields = parser.parse_known_args(argv)
            if fields and "takes_fields" not in args:
                parser.error(f"unrecognized arguments: {' '.join(fields)}")
            args.fields = fields  # --config.FIELD=VALUE
            code = args.run(args)
    except UserError as error:
        # A location that cannot be written to is a user's mistake, a full disk is not.
        place = isinstance(error, WriteError) and isinstance(error.__cause__, OSError) and not no_room(error.__cause__)
        code = process.say(f"error: {error}", process.MISTAKE if place else process.exit_code(error))
    except KeyboardInterrupt:
        code = process.say("interrupted", process.INTERRUPTED)
    return code


def _make_parser(argv: list[str]) -> _Parser:
    """The parser with the subcommand that `argv` names, or with all of them."""
    parser = _Parser(
        prog="inception-jax",
        description="Train and study the Inception family of image classifiers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"inception-jax {importlib.metadata.version('inception-jax')}"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only the command that is named is imported, and only now, so that help and mistakes are answered at once and the
    # restart that tune() may perform costs nothing.
    named = [name for name in argv[:1] if name in COMMANDS and COMPLETING not in os.environ]
    for name in named or COMMANDS:
        importlib.import_module(f"inception_jax.commands.{name.replace('-', '_')}").add_parser(subparsers)
    return parser
