"""`inception-jax inspect`: structure and cost of networks, one in detail or several side by side."""

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.commands import flags
from inception_jax.errors import UserError, check_choice
from inception_jax.text import TABLE_FORMATS, human, printable, say

DESCRIPTION = """\
Shows one network's layers with their sizes and costs, or compares several.

NAME is a registered network, a shell pattern, module:Name for your own network, or the folder of a run.
Multiply-adds are for one image; products with padding are counted, as in the papers."""

EXAMPLES = """\
examples:
  inception-jax inspect googlenet
  inception-jax inspect googlenet --depth 2 --format csv > layers.csv
  inception-jax inspect googlenet --against paper
  inception-jax inspect googlenet --parameters
  inception-jax inspect googlenet --diagram googlenet.svg
  inception-jax inspect resnet50 --image-size 256 --xla
  inception-jax inspect googlenet --option norm=lrn --option aux_heads=true
  inception-jax inspect googlenet 'resnet*' 'vgg*' --chart networks.png
  inception-jax inspect runs/googlenet_digits
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "inspect",
        run,
        help="show a network's layers and their costs, or compare several networks",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a network, or a run's folder; several are compared")
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="image size (default: the network's, or that of the run's data)",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="number of classes, not for runs (default: 1000)")
    for name in ("--image_size", "--num_classes"):  # their old names, from before other commands had them
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the network; can be repeated"
    )
    parser.add_argument("--format", default="text", metavar="FORMAT", help="text (default), markdown or csv")
    flags.add_trust(parser)
    one = parser.add_argument_group("one network")
    one.add_argument("--depth", type=int, metavar="N", help="levels of nested modules to show (default: 1)")
    one.add_argument("--against", choices=["paper"], help="compare googlenet with the table in its paper")
    one.add_argument(
        "--parameters",
        action="store_true",
        help="list the parameters instead; for a run with mean and standard deviation",
    )
    one.add_argument("--xla", action="store_true", help="also show XLA's own count of operations")
    one.add_argument(
        "--diagram",
        metavar="FILE",
        type=flags.path,
        help="draw it: .svg, whose modules open when they are clicked, .png or .pdf; --depth 2 opens them",
    )
    several = parser.add_argument_group("several networks")
    several.add_argument(
        "--chart", metavar="FILE", type=flags.path, help="plot top-1 accuracy, if known, against multiply-adds"
    )
    several.add_argument(
        "--no-latency", action="store_true", help="do not measure latency, which compiles the networks"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table; with CSV, its notes go to stderr."""
    flags.check_at_least_1(args, "image_size", "num_classes", "depth")
    check_choice("--format", args.format, TABLE_FORMATS)
    names = _names(args.names)
    several = {"--chart": args.chart, "--no-latency": args.no_latency}
    one = {"--depth": args.depth, "--against": args.against, "--parameters": args.parameters, "--xla": args.xla}
    one["--diagram"] = args.diagram
    layers = {"--depth": args.depth, "--against": args.against, "--xla": args.xla, "--format": args.format != "text"}
    layers["--diagram"] = args.diagram
    for flag, given in (several if len(names) == 1 else one).items():
        if given:
            wanted = "several networks" if len(names) == 1 else "one network"
            raise UserError(f"{flag} needs {wanted}, got {', '.join(names)}")
    for flag, given in layers.items():
        if given and args.parameters:
            raise UserError(f"{flag} cannot be used with --parameters")
    if args.diagram:
        from inception_jax.inspection.drawing import check_file

        check_file(args.diagram, "diagram")
    (_show if len(names) == 1 else _compare)(names, args)
    return 0


def _names(given: list[str]) -> list[str]:
    """The names, with patterns replaced by the registered names that match them."""
    from inception_jax.models import list_models

    names: list[str] = []
    for name in given:
        is_pattern = set(name) & set("*?[") and not Path(name, "config.json").is_file()
        found = list_models(name) if is_pattern else [name]
        if not found:
            raise UserError(f"no network matches {name!r}. Known: {', '.join(list_models())}")
        names += found
    return list(dict.fromkeys(names))


def _show(names: list[str], args: argparse.Namespace) -> None:
    from inception_jax import inspection
    from inception_jax.inspection import papers

    (name,) = names
    model, image_shape, run = _load(name, args)
    if args.parameters:
        variables = None if run is None else run.variables
        say(inspection.parameter_table(model, image_shape[:2], image_shape[2], variables=variables))
        return
    table = inspection.layer_table(model, image_shape[:2], image_shape[2], args.depth or 1)
    page = inspection.against_paper(table, args.format) if args.against else table.format(args.format)
    notes = [papers.NOTES] if args.against else []
    if args.xla:
        count = inspection.xla_multiply_adds(model, image_shape[:2], image_shape[2])
        more = count / table.total.multiply_adds - 1
        notes.append(f"XLA's own count: {count:,} multiply-adds ({more:+.2%}), with biases, activations and pooling")
    title = (
        f"{printable(name)}, images of {'x'.join(map(str, image_shape))}: {table.total.parameters:,} parameters, "
        f"{table.total.multiply_adds:,} multiply-adds"
    )
    _print(title, page, notes, args.format)
    if args.diagram:
        told = f"{name}: {human(table.total.parameters)} parameters, {human(table.total.multiply_adds)} multiply-adds"
        drawn = inspection.network_diagram(model, image_shape[:2], image_shape[2], depth=args.depth or 1, title=told)
        drawn.save(args.diagram)


def _compare(names: list[str], args: argparse.Namespace) -> None:
    import jax

    from inception_jax import inspection, process
    from inception_jax.inspection.compare import IMAGENET, sources

    process.use_compilation_cache()
    summaries = []
    for name in names:
        model, image_shape, run = _load(name, args)
        accuracy, variables = None, None
        if run is not None:
            accuracy, variables = _run_accuracy(run), run.variables
        elif not args.option and args.image_size is None and args.num_classes in (None, 1000):
            accuracy = IMAGENET.get(name)
        summaries.append(
            inspection.summarize(
                name, model, image_shape, variables=variables, accuracy=accuracy, with_latency=not args.no_latency
            )
        )
    if args.chart:
        inspection.save_chart(summaries, args.chart)
    device = jax.devices()[0].device_kind
    notes = [] if args.no_latency else [f"latency: median for one image, batch norm folded, on this machine ({device})"]
    notes += [sources(summaries)] if sources(summaries) else []
    _print("", inspection.comparison(summaries, args.format), notes, args.format)


def _load(name: str, args: argparse.Namespace) -> tuple[Any, tuple[int, int, int], Any]:
    """The network, the (height, width, channels) of its images, and the run, if it is from one."""
    from inception_jax.inspection.table import image_shape_of
    from inception_jax.models import create_model

    folder = files.expand(name, "NAME")
    if (folder / "config.json").is_file():
        if args.option or args.num_classes:
            raise UserError(f"--option and --num-classes cannot be used with a run: {name}")
        from inception_jax.runs.run import load_run

        loaded = load_run(folder, trust_code=args.trust_code)
        height, width, channels = loaded.inputs.image_shape
        return loaded.model, image_shape_of(loaded.model, args.image_size or (height, width), channels), loaded
    if "/" in name and ":" not in name:
        raise UserError(f"{folder} is not a run's folder: it has no config.json")
    model = create_model(name, num_classes=args.num_classes or 1000, **_options(args.option))
    return model, image_shape_of(model, args.image_size), None


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for option in given:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UserError(f"--option {option} is not allowed: it must be KEY=VALUE, such as norm=lrn")
        if key in ("num_classes", "dtype", "param_dtype"):
            raise UserError(f"--option {option} is not allowed: {key} is not an option of the network")
        try:
            options[key] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def _run_accuracy(run: Any) -> Any:
    """The accuracy of the run's best weights on the test split, if they were evaluated."""
    from inception_jax.inspection.compare import Accuracy
    from inception_jax.runs.records import read_summary

    summary = read_summary(run.folder) or {}
    result = (summary.get("best") or {}).get("test")
    data = run.config.data.name
    return Accuracy(result["top1"], f"{data}'s test split", "the run's summary.json") if result else None


def _print(title: str, page: str, notes: list[str], style: str) -> None:
    """Prints a title, the table and the notes; for CSV, the table alone on stdout and the notes on stderr."""
    if style == "csv":
        say(page)
        if notes:
            say("\n".join(notes), file=sys.stderr)
        return
    say("\n\n".join(part for part in (title, page, "\n".join(notes)) if part))
