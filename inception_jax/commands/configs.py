"""`inception-jax configs`: the experiments that come with the package."""

import argparse
import ast
from pathlib import Path

from inception_jax import files
from inception_jax.commands import flags
from inception_jax.config.files import shipped_configs
from inception_jax.errors import UserError, unknown_name
from inception_jax.text import columns, say

EXAMPLES = """\
examples:
  inception-jax configs
  inception-jax configs googlenet_digits
  inception-jax configs googlenet_digits --copy my_experiment.py
  inception-jax train my_experiment.py
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "configs",
        run,
        help="list the shipped configs, or show or copy one",
        description="Lists the shipped configs, or prints the file of one with the result that was measured.",
        examples=EXAMPLES,
    )
    name = parser.add_argument("name", metavar="NAME", nargs="?", help="a shipped config")
    flags.complete(name, lambda _: shipped_configs())
    parser.add_argument("--copy", metavar="FILE", type=flags.path, help="new file, for a config to start from")


def run(args: argparse.Namespace) -> int:
    """Prints the shipped configs, or one of them, or copies it."""
    shipped = shipped_configs()
    if args.name is None:
        if args.copy:
            raise UserError(f"--copy={args.copy} needs the name of a config")
        _list(shipped)
        return 0
    if args.name not in shipped:
        raise unknown_name("config", args.name, shipped)
    text = shipped[args.name].read_text(encoding="utf-8")
    if args.copy:
        _copy(args.name, text, args.copy)
    else:
        say(text.rstrip("\n"))
    return 0


def _list(shipped: dict[str, Path]) -> None:
    titles = {name: ast.get_docstring(ast.parse(path.read_bytes())) or "" for name, path in shipped.items()}
    for line in columns([(name, title.partition("\n")[0]) for name, title in titles.items()]):
        say(line)
    for folder in sorted({path.parent for path in shipped.values()}):
        say(f"\nThe files are in {folder}")


def _copy(name: str, text: str, path: Path) -> None:
    """Writes a config with another docstring: the command and the results in its own are not the copy's.

    Raises:
      UserError: the file exists, is not named *.py, or cannot be written.
    """
    if path.suffix != ".py":
        raise UserError(f"--copy={path} is not allowed: the name of a config file must end in .py")
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists: choose another name")
    docstring = ast.parse(text).body[0]
    code = "".join(text.splitlines(keepends=True)[docstring.end_lineno :])
    files.write_text(path, f'"""Started from the shipped config {name}."""\n{code}')
    say(f"{path}: change it, then run: inception-jax train --config={path}")
