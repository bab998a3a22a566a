"""`inception-jax configs`: the experiments that come with the package."""

import argparse
import ast

from inception_jax.commands import flags
from inception_jax.config.files import shipped_configs
from inception_jax.text import columns, say

EXAMPLES = """\
examples:
  inception-jax configs
  inception-jax train --config=googlenet_digits
"""


def add_parser(subparsers) -> None:
    flags.add_command(
        subparsers,
        "configs",
        run,
        help="list the shipped configs",
        description="Lists the shipped configs.",
        examples=EXAMPLES,
    )


def run(args: argparse.Namespace) -> int:
    shipped = shipped_configs()
    titles = {name: ast.get_docstring(ast.parse(path.read_bytes())) or "" for name, path in shipped.items()}
    for line in columns([(name, title.partition("\n")[0]) for name, title in titles.items()]):
        say(line)
    for folder in sorted({path.parent for path in shipped.values()}):
        say(f"\nThe files are in {folder}")
    return 0
