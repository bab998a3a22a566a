"""`inception-jax compare`: two runs on the same images."""

import argparse
import dataclasses
import math
from typing import TYPE_CHECKING, Any

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.process import log_to_stderr
from inception_jax.text import format_table, json_text, printable, say

if TYPE_CHECKING:
    from inception_jax.trained.compare import Comparison

EXAMPLES = """\
examples:
  inception-jax compare runs/plain runs/residual
  inception-jax compare runs/plain runs/residual --split validation --per-class
  inception-jax compare runs/plain runs/residual --chart layers.png --layers 'inception_*'
  inception-jax compare runs/ten_synsets runs/googlenet_cifar10 --data cifar10 --images 0 --json

Both networks classify the same pictures, by default those of the first run, each at its own image size. Only examples
whose class both networks have are counted. McNemar's exact test gives the probability of a split at least as uneven of
the examples that only one network classifies correctly, if both were correct equally often. The interval is for paired
proportions (Bonett and Price 2012). Layers are compared by linear CKA (Kornblith et al. 2019; Nguyen et al. 2021): 1
means equal up to rotation, scale and shift.
"""
CLASSES_SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "compare",
        run,
        help="compare two runs picture by picture and layer by layer",
        description="Compares two trained networks on the same pictures: their accuracy, whether the difference could "
        "be chance, and how similar their layers are.",
        examples=EXAMPLES,
    )
    flags.add_runs(parser, nargs=2)
    flags.add_data(parser)
    flags.add_network(parser)
    parser.add_argument("--per-class", action="store_true", help="show all classes (default: those that differ most)")
    parser.add_argument(
        "--images", metavar="N", type=int, default=512, help="images for comparing layers; 0: skip (default: 512)"
    )
    parser.add_argument(
        "--layers", metavar="PATTERNS", help="comma-separated layer paths (default: the network's own parts)"
    )
    parser.add_argument("--chart", metavar="FILE", type=flags.path, help="plot all pairs of layers: .png, .pdf or .svg")
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints which examples each run gets right, the classes that differ most, and the similarity of layers."""
    # Imported only now: help is shown without waiting for JAX.
    from inception_jax.errors import UserError
    from inception_jax.inspection.drawing import check_file
    from inception_jax.runs.run import load_run
    from inception_jax.trained.classes import read_class_map
    from inception_jax.trained.compare import compare_runs, save_chart

    flags.check_at_least_1(args, "batch_size")
    if args.chart:
        check_file(args.chart)
        if not args.images:
            raise UserError("--chart compares layers: give --images greater than 0")
    process.use_compilation_cache()
    with log_to_stderr():
        first, second = (load_run(folder, args.checkpoint, trust_code=args.trust_code) for folder in args.run_folders)
        found = compare_runs(
            first,
            second,
            args.split,
            flags.data_fields(args),
            class_map=read_class_map(args.class_map) if args.class_map else None,
            batch_size=args.batch_size,
            images=args.images,
            layers=args.layers.split(",") if args.layers else None,
        )
    folders = [str(folder) for folder in args.run_folders]
    weights = [flags.weights_of(trained) for trained in (first, second)]
    if args.chart and found.similarity:
        save_chart(found.similarity, folders[0], folders[1], args.chart)
    if args.json:
        say(json_text(_record(weights, found), indent=2))
    else:
        say(_text(weights, found, every_class=args.per_class))
    return 0


def _record(weights: list[dict[str, Any]], found: "Comparison") -> dict[str, Any]:
    pairing, similarity = found.pairing, found.similarity
    record: dict[str, Any] = {
        "first": weights[0]["run"],
        "second": weights[1]["run"],
        "weights": weights,
        "data": found.data,
        "split": found.split,
        **dataclasses.asdict(pairing),
        "difference": pairing.difference,
        "interval": pairing.interval,
        "mcnemar_p_value": pairing.p_value,
        "per_class": [dataclasses.asdict(each) for each in found.classes],
    }
    if similarity:
        record["layers"] = {
            "images": similarity.images,
            "first": similarity.first_layers,
            "second": similarity.second_layers,
            "cka": similarity.cka.tolist(),
        }
    return record


def _text(weights: list[dict[str, Any]], found: "Comparison", *, every_class: bool) -> str:
    pairing = found.pairing
    number = pairing.count
    low, high = pairing.interval
    right = pairing.both + pairing.only_first, pairing.both + pairing.only_second
    blocks = [
        "\n".join(
            [
                f"{number:,} examples of {printable(found.data)}, {printable(found.split)}",
                *(
                    f"{which}: {printable(each['run'])}, {count / number:.2%}, {flags.weights_in_words(each)}"
                    for which, each, count in zip(("first", "second"), weights, right, strict=True)
                ),
            ]
        )
    ]
    counts = {
        "both right": pairing.both,
        "only the first": pairing.only_first,
        "only the second": pairing.only_second,
        "neither": pairing.neither,
        "same prediction": pairing.agreeing,
    }
    blocks.append(
        format_table(["", "examples", "share"], [[k, f"{v:,}", f"{v / number:.2%}"] for k, v in counts.items()])
    )
    blocks.append(
        f"second minus first: {100 * pairing.difference:+.2f} points, "
        f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}\n"
        f"McNemar's exact test: p = {pairing.p_value:.2g}"
    )
    classes = found.classes
    if not every_class:
        classes = sorted(classes, key=lambda each: -abs(each.difference))[:CLASSES_SHOWN]
    cells = [
        [each.name, f"{each.first:.2%}", f"{each.second:.2%}", f"{100 * each.difference:+.2f}", f"{each.count:,}"]
        for each in classes
    ]
    table = format_table(["class", "first", "second", "points", "examples"], cells)
    if len(classes) < len(found.classes):
        table += f"\n({len(classes)} of {len(found.classes)} classes; --per-class shows all)"
    blocks.append(table)
    if found.similarity:
        blocks.append(_layers(found))
    return "\n\n".join(blocks)


def _layers(found: "Comparison") -> str:
    """Each layer of the first network with the layer of the same name and the most similar layer of the second."""
    import numpy as np

    similarity = found.similarity
    assert similarity
    rows, namesakes = [], similarity.namesakes
    for name, values in zip(similarity.first_layers, similarity.cka, strict=True):
        same = namesakes.get(name, math.nan)
        best = similarity.second_layers[int(np.nanargmax(values))] if np.isfinite(values).any() else "-"
        most = f"{np.nanmax(values):.3f}" if np.isfinite(values).any() else "-"
        rows.append([name, best, f"{same:.3f}" if math.isfinite(same) else "-", most])
    header = ["layer of the first", "most similar in the second", "CKA with same name", "with most similar"]
    return f"{format_table(header, rows, left=2)}\n(on {similarity.images} images; --chart FILE plots all pairs)"
