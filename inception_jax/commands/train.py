"""`inception-jax train`: the same as `python -m inception_jax.main`."""

import argparse

from inception_jax import main
from inception_jax.commands import completion, flags


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    # Disable option parsing here: every flag, including --help, is passed to main's own parser.
    parser = subparsers.add_parser(
        "train", help="train a network from a config, or resume a stopped run", add_help=False, prefix_chars="\0"
    )
    flags.complete(parser.add_argument("flags", nargs="*"), completion.training)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit code of `main.main`."""
    return main.main(args.flags, program="inception-jax train")
