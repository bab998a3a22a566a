"""Flags that several commands have, so that the same flag is for the same thing."""

import argparse
from pathlib import Path
from typing import Any

from inception_jax.config_files import find_config, load_config
from inception_jax.errors import UserError


def add_data(parser: argparse.ArgumentParser) -> None:
    """Which examples: a split, of a run's own data or of another data set."""
    parser.add_argument("--split", default="test", help="(default: test)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--data", metavar="NAME", help="another data set (default: the run's own)")
    other.add_argument("--config", metavar="NAME_OR_FILE", help="a config whose data and splits are taken instead")
    parser.add_argument("--folder", metavar="DIR", help="its pictures, for image_folder and the like")
    parser.add_argument("--archives", metavar="DIR", help="its original archives, where there is no network")
    parser.add_argument("--data-dir", metavar="DIR", help="where prepared data is kept")
    parser.add_argument("--keep", choices=("all", "color", "grayscale"), help="which pictures, by how they are stored")
    parser.add_argument(
        "--class-map", metavar="FILE", type=Path, help='JSON: {"class of the data": "class of the run"}'
    )


def data_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `config.data` that the flags of `add_data` set."""
    from inception_jax.evaluate import source_fields  # only now: help is answered without waiting for JAX

    given = {
        "name": args.data,
        "folder": args.folder,
        "archives": args.archives,
        "directory": args.data_dir,
        "keep": args.keep,
    }
    fields = source_fields(load_config(find_config(args.config))) if args.config else {}
    return fields | {field: value for field, value in given.items() if value is not None}


def add_network(parser: argparse.ArgumentParser, batch_size: int = 128) -> None:
    """Which weights of a run, and how many pictures go through them at once."""
    add_checkpoint(parser)
    parser.add_argument("--batch-size", type=int, default=batch_size, help="(default: %(default)s)")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which weights of a run."""
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best or latest (default: best)")


def check_batch_size(args: argparse.Namespace) -> None:
    """Raises a UserError where the flag of `add_network` is not allowed."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} is not allowed: it must be at least 1")
