"""`inception-jax completion`: lets the Tab key complete commands, flags, fields and shipped names in a shell."""

import argparse

from inception_jax.commands import flags
from inception_jax.config.fields import FIELDS
from inception_jax.config.files import shipped_configs
from inception_jax.text import say

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """\
examples:
  eval "$(inception-jax completion bash)"        # in ~/.bashrc
  eval "$(inception-jax completion zsh)"         # in ~/.zshrc, after compinit
  inception-jax completion fish > ~/.config/fish/completions/inception-jax.fish
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "completion",
        run,
        help="print the script for completion with Tab in a shell",
        description="Prints the script that lets a shell complete commands, flags, fields, configs and studies.",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace) -> int:
    """Prints the code that a shell evaluates."""
    from argcomplete.shell_integration import shellcode

    say(shellcode(["inception-jax"], shell=args.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Prints the completions of the command line in the environment, and ends the program."""
    import argcomplete

    argcomplete.autocomplete(parser)


def training(prefix: str) -> list[str]:
    """What the arguments of `train` may be: configs, its flags, fields, and the values of fields with choices."""
    flag, equals, _value = prefix.partition("=")
    if not prefix.startswith("-"):
        return list(shipped_configs())
    if flag == "--config" and equals:
        return [f"--config={name}" for name in shipped_configs()]
    fields = {f"--config.{field.name}": field for field in FIELDS}
    if equals:
        field = fields.get(flag)
        values = () if field is None else ("true", "false") if field.kind is bool else field.choices
        return [f"{flag}={value}" for value in values]
    own = ["--config=", "--workdir=", "--help", "--wait", "--trust-code", "--multihost"]
    return own + [f"{name}=" for name in fields]
