"""`inception-jax evaluate`: runs on a split of their own or of any other data."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.config.validate import METRICS
from inception_jax.errors import UserError
from inception_jax.process import log_to_stderr
from inception_jax.text import format_table, json_text, printable, say

EXAMPLES = """\
examples:
  inception-jax evaluate runs/googlenet_cifar10
  inception-jax evaluate runs/ten_synsets --data cifar10 --archives DIR
  inception-jax evaluate runs/mine --data image_folder --folder DIR --class-map same.json
  inception-jax evaluate runs/mine --config my_other_data.py --split validation
  inception-jax evaluate runs/mine --per-class --confusion confusion.png --predictions predictions.npz
  inception-jax evaluate runs/mine --tta 10-crop
  inception-jax evaluate runs/seed_0 runs/seed_1 runs/seed_2 --ensemble
  inception-jax evaluate runs/cycles --snapshots

Grayscale and color pictures: converted, all as one channel, or with a separate network for each:
  inception-jax evaluate runs/plain runs/one_channel --split test
  inception-jax evaluate runs/color --grayscale-run runs/grayscale --split test

Classes are matched by name: first exactly, then ignoring case, spaces, hyphens and underscores where that is one to
one; use --class-map for the others. Examples of classes that the network does not have are left out and counted.
A single run is evaluated on the pictures that its data.keep selects; several runs, or a pair, on all pictures. All
networks of a pair or an ensemble get the pictures of the first run.

ECE is the expected calibration error: the average gap between the probability of the predicted class and the accuracy.
Test-time augmentation averages the probabilities of several views of a picture. flip: the image and its mirror image;
10-crop: the four corners and the center of an image 256/224 as large as the network's, and their mirror images; 1-crop:
the center only; 144-crop: crops of each picture at four sizes, from the left, the center and the right (GoogLeNet's
paper, Szegedy et al. 2015, section 7). --ensemble averages the probabilities of several runs, --snapshots those of one
run's weights at the end of each cycle of its schedule (Huang et al. 2017). --confusion and --predictions are those of
the run or the ensemble.
"""


SHOWN = (*METRICS, "count")  # in columns of their own


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "evaluate",
        run,
        help="evaluate runs on a split of their own data or of another data set",
        description="Evaluates trained networks on a split of their own data, or of another data set resized to their "
        "image size; every example is counted once.",
        examples=EXAMPLES,
    )
    flags.add_runs(parser, nargs="+")
    flags.add_data(parser)
    parser.add_argument(
        "--grayscale-run", metavar="RUN", type=flags.path, help="network for pictures stored as grayscale"
    )
    parser.add_argument("--ensemble", action="store_true", help="add a row for the mean of the runs' probabilities")
    parser.add_argument(
        "--snapshots",
        action="store_true",
        help="evaluate a run's weights at the end of each cycle of its schedule, and the mean of their probabilities",
    )
    parser.add_argument(
        "--tta",
        default="none",
        metavar="NAME",
        help="none, flip, flip-shift, 1-crop, 10-crop or 144-crop (default: none)",
    )
    parser.add_argument(
        "--per-class", action="store_true", help="show precision, recall and number of examples of each class"
    )
    parser.add_argument(
        "--confusion", metavar="FILE", type=flags.path, help="write the confusion matrix: .csv, .png, .pdf or .svg"
    )
    parser.add_argument(
        "--predictions", metavar="FILE", type=flags.path, help="write the prediction of each example: .npz or .csv"
    )
    flags.add_network(parser)
    flags.add_dtype(parser)
    flags.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each run: top-1, top-5, loss and ECE, and top-1 on grayscale and color pictures where known."""
    # Imported only now: help is shown without waiting for JAX.
    from inception_jax.inspection.confusion import save_confusion
    from inception_jax.runs.run import load_run
    from inception_jax.trained import evaluate
    from inception_jax.trained.classes import read_class_map

    _check(args)
    process.use_compilation_cache()
    class_map = read_class_map(args.class_map) if args.class_map else None
    fields = flags.data_fields(args)
    if not args.keep and (len(args.run_folders) > 1 or args.grayscale_run):
        fields["keep"] = "all"

    def predict(
        folder: Path, fields: dict[str, Any], split: str | None, checkpoint: str | int = args.checkpoint
    ) -> tuple[Any, Any, Any, str]:
        with log_to_stderr():
            trained = load_run(folder, checkpoint, dtype=args.dtype, trust_code=args.trust_code)
            split, dataset = evaluate.load_split(trained, split, fields, tta=args.tta)
            found = evaluate.predictions(
                trained, dataset, split, class_map=class_map, batch_size=args.batch_size, tta=args.tta
            )
        return trained, found, dataset, split

    def same_pictures(trained: Any) -> dict[str, Any]:
        """The first run's, unless others are named."""
        return fields if {"name", "folder"} & fields.keys() else evaluate.own_source_fields(trained) | fields

    rows: dict[str, dict[str, Any]] = {}
    members, split = [], args.split
    networks: list[Any] = []
    together = args.ensemble or args.snapshots
    for folder, checkpoint in _weights(args):
        same = bool(networks and together)
        trained, found, dataset, used = predict(
            folder, same_pictures(networks[0]) if same else fields, split if same else args.split, checkpoint
        )
        name, split = f"{folder}, cycle {len(networks) + 1}" if args.snapshots else str(folder), used
        pair = [trained]
        if args.grayscale_run:
            other, gray, _, _ = predict(args.grayscale_run, same_pictures(trained), split)
            _require_same_classes(trained, other, "a pair")
            found, name = evaluate.routed(found, gray), f"{folder} and, for grayscale, {args.grayscale_run}"
            pair.append(other)
        networks.append(trained)
        if together:
            _require_same_classes(networks[0], trained, "an ensemble")
            members.append(found)
        rows[name] = _row(args, found, dataset, split, pair)
    if together:
        found = evaluate.ensemble(members)
        rows[f"ensemble of {len(members)}"] = _row(args, found, dataset, split, networks)
    if args.confusion:
        save_confusion(evaluate.confusion_matrix(found), trained.class_names, args.confusion)
    if args.predictions:
        evaluate.save_predictions(found, trained.class_names, args.predictions)
    say(json_text(rows, indent=2) if args.json else _table(rows))
    return 0


def _weights(args: argparse.Namespace) -> list[tuple[Path, str | int]]:
    """The run and the checkpoint of each network."""
    from inception_jax.runs.run import snapshot_steps

    if not args.snapshots:
        return [(folder, args.checkpoint) for folder in args.run_folders]
    (folder,) = args.run_folders
    return [(folder, step) for step in snapshot_steps(folder, trust_code=args.trust_code)]


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, before anything is loaded."""
    from inception_jax.inspection.confusion import check_suffix
    from inception_jax.trained.evaluate import check_predictions_file

    several = len(args.run_folders) > 1
    if args.grayscale_run and several:
        raise UserError("--grayscale-run needs exactly one other run")
    if args.ensemble and not several:
        raise UserError("--ensemble needs at least two runs")
    if args.snapshots and (several or args.grayscale_run or args.checkpoint != "best"):
        raise UserError("--snapshots needs exactly one run, and no --grayscale-run or --checkpoint")
    flags.check_at_least_1(args, "batch_size")
    for flag, path, check in (
        ("--confusion", args.confusion, check_suffix),
        ("--predictions", args.predictions, check_predictions_file),
    ):
        if path and several and not args.ensemble:
            raise UserError(f"{flag} needs a single run, or --ensemble for several")
        if path:
            check(path)


def _row(args: argparse.Namespace, found: Any, dataset: Any, split: str, networks: list[Any]) -> dict[str, Any]:
    """What the command says of the predictions of a network, or of several as one."""
    from inception_jax.trained import evaluate

    with log_to_stderr():
        own = networks[0].own_metrics()
    labels, names = dataset.splits[split].all_labels(), dataset.shown_names
    weights = [flags.weights_of(network) for network in networks]
    values = {
        **(weights[0] if len(weights) == 1 else {"members": weights}),
        "data": dataset.name,
        "split": split,
        "tta": args.tta,
        **evaluate.by_color(found, own),
        "calibration_error": evaluate.calibration_error(found),
        "left_out": int((found.labels < 0).sum()),  # of classes that the network does not have
        "classes_left_out": sorted({names[label] for label in labels[found.labels < 0]}),
        "not_decoded": int((~found.decoded).sum()),
    }
    if args.per_class:
        values["per_class"] = [dataclasses.asdict(each) for each in evaluate.per_class(found, networks[0].class_names)]
    return values


def _require_same_classes(one: Any, other: Any, what: str) -> None:
    if other.inputs.class_names != one.inputs.class_names:
        raise UserError(f"{one.folder} and {other.folder} have different classes: they cannot be used as {what}")


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """Aligned columns; below, what was left out, and the classes of each row that has them."""
    own = list(dict.fromkeys(name for row in rows.values() for name in row["all"] if name not in SHOWN))
    header = ["run", "weights", "data", "top-1", "top-5", "loss", *own, "ECE", "examples"]
    colors = ["grayscale", "color"] if any("grayscale" in row for row in rows.values()) else []
    formats = {"top1": ".2%", "top5": ".2%", "loss": ".4f"}
    lines, notes, classes_of_rows = [], [], []
    for name, row in rows.items():
        means = row["all"]
        line = [
            name,
            flags.weights_in_words(*row.get("members", [row])),
            f"{row['data']}, {row['split']}" + (f", {row['tta']}" if row["tta"] != "none" else ""),
            *(f"{means[mean]:{form}}" if means["count"] else "-" for mean, form in formats.items()),
            *(f"{means[name]:.4f}" if name in means else "-" for name in own),
            _percent(row["calibration_error"]),
            f"{means['count']:,}",
        ]
        for kind in colors:
            part = row.get(kind, {"count": 0})
            line.append(f"{part['top1']:.2%} of {part['count']:,}" if part["count"] else "-")
        lines.append(line)
        if row["left_out"]:
            classes = ", ".join(map(printable, row["classes_left_out"][:10]))
            classes += ", ..." if len(row["classes_left_out"]) > 10 else ""
            notes.append(f"{printable(name)}: {row['left_out']:,} examples of classes that it does not have: {classes}")
        if row["not_decoded"]:
            notes.append(f"{printable(name)}: {row['not_decoded']:,} pictures that could not be decoded")
        if "per_class" in row:
            cells = [
                [each["name"], _percent(each["precision"]), _percent(each["recall"]), f"{each['count']:,}"]
                for each in row["per_class"]
            ]
            classes_of_rows += [
                "",
                f"{printable(name)}:",
                format_table(["class", "precision", "recall", "examples"], cells),
            ]
    return "\n".join([format_table([*header, *colors], lines, left=3, rule=False), *notes, *classes_of_rows])


def _percent(share: float) -> str:
    return f"{share:.2%}" if math.isfinite(share) else "-"
