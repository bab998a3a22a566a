"""`inception-jax find-lr`: trains for some steps with a rising learning rate, and suggests one."""

import argparse

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.config.files import override, shipped_configs
from inception_jax.process import log_to_stderr
from inception_jax.text import json_text, say

EXAMPLES = """\
examples:
  inception-jax find-lr googlenet_digits
  inception-jax find-lr googlenet_cifar10 --chart rates.png --config.batch_size=256
  inception-jax train googlenet_cifar10 --config.schedule.learning_rate=0.05

The suggestion is for the highest rate of a schedule, config.schedule.learning_rate, with the config's optimizer, batch
size and augmentation. It is a tenth of the rate at which the smoothed loss is lowest.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "find-lr",
        run,
        help="suggest a learning rate, after some steps with a rising one",
        description="Trains for some steps with a rising learning rate (Smith 2017) and suggests one. Nothing is kept.",
        examples=EXAMPLES,
        takes_fields=True,
    )
    config = parser.add_argument("config", metavar="NAME_OR_FILE", help="a config file, or the name of a shipped one")
    flags.complete(config, lambda _: shipped_configs())
    parser.add_argument("--lowest", type=float, default=1e-6, metavar="RATE", help="first rate (default: %(default)s)")
    parser.add_argument("--highest", type=float, default=10.0, metavar="RATE", help="last rate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--chart", type=flags.path, metavar="FILE", help="write the losses as a chart: .png, .pdf or .svg"
    )
    flags.add_json(parser, "print JSON with the rate and the loss of each step")


def run(args: argparse.Namespace) -> int:
    """Prints the suggested learning rate, and writes the chart if it is requested."""
    config = flags.config(args.config)
    override(config, ["", *args.fields])
    from inception_jax.inspection import drawing
    from inception_jax.train.find_lr import find_learning_rate

    if args.chart:
        drawing.check_file(args.chart)  # before it takes time
    process.use_compilation_cache()
    with log_to_stderr():
        found = find_learning_rate(config, lowest=args.lowest, highest=args.highest, steps=args.steps)
    if args.json:
        values = {"suggestion": found.suggestion, "rates": found.rates.tolist(), "losses": found.losses.tolist()}
        say(json_text(values, indent=2))
    else:
        end = f"{found.rates[-1]:.3g}" + ("" if len(found.rates) == args.steps else ", where the loss had risen")
        say(f"suggestion: {found.suggestion:.2g} ({len(found.rates)} steps, from {found.rates[0]:.3g} to {end})")
    if args.chart:  # last: if it cannot be written, the result has been printed
        found.save(args.chart)
    return 0
