"""`inception-jax prepare`: gets a data set ready before a run, or on a machine without a network."""

import argparse
from typing import Any

import tensorflow_datasets as tfds

from inception_jax import data


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command to the command line."""
    parser = subparsers.add_parser(
        "prepare",
        help="download a data set, or read its archives, and decode it",
        description="Downloads a data set, or reads archives that are there already, and decodes it, once.",
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(data.DATASETS)}, or module:Name of your own")
    parser.add_argument("--archives", metavar="DIR", help="folder with the original archives or their files")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where it is kept (default: $INCEPTION_JAX_DATA, else ~/.cache/inception_jax)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepares the data set and prints its splits, the shape of its images, its classes and its folder."""
    folder = data.prepare(args.name, directory=args.data_dir, archives=args.archives)
    builder = tfds.builder_from_directory(folder)
    (_, image), (_, label) = data._image_and_label(builder)
    shape: Any = image.shape
    print(f"{args.name}: images {'x'.join(str(side or '?') for side in shape)}, {label.num_classes} classes")
    for split, split_info in builder.info.splits.items():
        print(f"  {split:<12} {split_info.num_examples:>9,} examples")
    print(f"  in {folder}")
    return 0
