"""The console command `inception-jax`: one module per sub-command, flags and printing only."""

import argparse
import importlib.metadata
import os
import sys
from typing import NoReturn

from inception_jax import process
from inception_jax.errors import UserError, unknown_name

EXAMPLES = """\
examples:
  inception-jax train --config=googlenet_digits
  inception-jax evaluate runs/googlenet_digits
  inception-jax predict runs/googlenet_digits picture.jpg
  inception-jax COMMAND --help
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Runs the sub-command that `argv` names (None: this process's); returns the exit code, 2 for a user's mistake."""
    if argv is None:
        process.tune()
        process.leave(main(sys.argv[1:]))
    # Imported only now, so that the new start that tune() may make costs nothing.
    from inception_jax.commands import (
        compare,
        configs,
        data,
        evaluate,
        export,
        inspect,
        predict,
        report,
        runs,
        serve,
        study,
        train,
    )

    commands = {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "inspect": inspect,
        "data": data,
        "export": export,
        "report": report,
        "runs": runs,
        "compare": compare,
        "serve": serve,
        "study": study,
        "configs": configs,
    }
    parser = _Parser(
        prog="inception-jax",
        description="Train and study the Inception family of image classifiers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("inception-jax"))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in commands.values():
        module.add_parser(subparsers)
    try:
        if argv and not argv[0].startswith("-") and argv[0] not in commands:
            raise unknown_name("command", argv[0], commands)
        args, fields = parser.parse_known_args(argv)
        if fields and "takes_fields" not in args:
            parser.error(f"unrecognized arguments: {' '.join(fields)}")
        args.fields = fields  # --config.FIELD=VALUE
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads the output, such as head, has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
