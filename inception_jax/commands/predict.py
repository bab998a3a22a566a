"""`inception-jax predict`: classifies images one by one."""

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.process import log_to_stderr
from inception_jax.text import aligned, complain, csv_line, json_text, printable, say, width

if TYPE_CHECKING:
    from inception_jax.inference.classify import Prediction

EXAMPLES = """\
examples:
  inception-jax predict runs/googlenet_cifar10 fox.jpg
  inception-jax predict runs/my_pictures new_pictures --csv > classes.csv
  curl -s https://example.org/fox.jpg | inception-jax predict runs/my_pictures - --json
  inception-jax predict runs/my_pictures/googlenet.stablehlo fox.jpg
  inception-jax predict runs/my_pictures new_pictures --engine onnxruntime

In CSV, a quote is put before names that a spreadsheet would read as formulas, such as =1+1, or that begin with a quote.

Pictures are read as in training. One that cannot be read is reported on stderr, the others are classified, and the exit
code is 1.
"""
NAME_WIDTH = 40  # longer names push their row to the right
LOOKED_AT = 1000  # names used to determine the column width, and whether there are many
# With at least this many images of at least this size, trying out engines may save more time than it takes: a few
# seconds, including the graph that they need.
WORTHWHILE, WORTHWHILE_SIDE = LOOKED_AT, 128


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "predict",
        run,
        help="predict the classes of pictures",
        description="Predicts the classes of pictures with a run's network, or an exported one.",
        examples=EXAMPLES,
    )
    flags.add_source(parser)
    parser.add_argument(
        "pictures", metavar="PICTURE", nargs="+", help="file, folder (including its subfolders), or - for stdin"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of classes to print (default: 5)")
    flags.add_network(parser, batch_size=32)
    flags.add_dtype(parser)
    flags.add_engine(
        parser,
        f"which uses the fastest one installed for at least {WORTHWHILE:,} pictures of at least {WORTHWHILE_SIDE} "
        "pixels, else jax",
    )
    flags.add_json(
        parser,
        "print one JSON line per picture",
        csv="print one CSV line per picture and class: picture,rank,class,...",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a row for each image; returns 1 if one could not be read."""
    # Imported only now: help is shown without waiting for JAX.
    from inception_jax.data.images import read_stream
    from inception_jax.trained import engines
    from inception_jax.trained.predict import find_pictures, load_classifier

    process.use_compilation_cache()
    classifier = load_classifier(args.source, args.checkpoint, dtype=args.dtype, trust_code=args.trust_code)
    with log_to_stderr():
        names = find_pictures(args.pictures)
        first = list(itertools.islice(names, LOOKED_AT))
        many = len(first) >= WORTHWHILE and (classifier.form.image_size or 0) >= WORTHWHILE_SIDE
        if args.engine != "auto" or many:
            classifier = engines.use(classifier, args.engine, batch_size=args.batch_size)
        sources = (read_stream(sys.stdin.buffer) if name == "-" else name for name in itertools.chain(first, names))
        if args.json:
            show = _as_json
        elif args.csv:
            show = _as_csv()
        else:
            widest = max((width(printable(name)) for name in first), default=0)
            class_width = max(width(printable(name)) for name in classifier.class_names)
            show = _as_row(min(widest, NAME_WIDTH), class_width, min(args.top, len(classifier.class_names)))
        failed = 0
        for found in classifier.classify(sources, top=args.top, batch_size=args.batch_size):
            if found.error is not None:
                failed += 1
                complain(f"{found.name}: {found.error}")
            show(found)
    if failed:
        complain(f"{failed} pictures could not be read")
    return 1 if failed else 0


def _as_json(found: "Prediction") -> None:
    pairs = zip(found.classes, found.probabilities, strict=True)
    classes = [{"name": name, "probability": probability} for name, probability in pairs]
    answer = {"classes": classes} if found.error is None else {"error": found.error}
    say(json_text({"picture": found.name, **answer}))


def _as_csv() -> Callable[["Prediction"], None]:
    say(csv_line(["picture", "rank", "class", "probability"]))

    def show(found: "Prediction") -> None:
        for rank, (name, probability) in enumerate(zip(found.classes, found.probabilities, strict=True), 1):
            say(csv_line([found.name, rank, name, f"{probability:.6f}"]))

    return show


def _as_row(name_width: int, class_width: int, top: int) -> Callable[["Prediction"], None]:
    """Prints the header, and returns what prints a row; `name_width`: of the pictures' column."""

    def show_cells(name: str, *classes: tuple[str, str]) -> None:
        cells = (f"{aligned(one, class_width)} {aligned(share, 7, left=False)}" for one, share in classes)
        say("  ".join([aligned(name, name_width), *cells]).rstrip())

    def show(found: "Prediction") -> None:
        if found.error is None:
            shares = (f"{probability:.2%}" for probability in found.probabilities)
            show_cells(printable(found.name), *zip(map(printable, found.classes), shares, strict=True))

    name_width, class_width = max(name_width, len("picture")), max(class_width, len("class"))
    show_cells("picture", ("class", ""), *[("", "")] * (top - 1))
    return show
