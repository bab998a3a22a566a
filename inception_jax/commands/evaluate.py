"""`inception-jax evaluate`: runs on a split of their own or of any other data."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from inception_jax import process
from inception_jax.config_files import find_config, load_config
from inception_jax.errors import UserError
from inception_jax.main import log_to_stderr

EXAMPLES = """\
examples:
  inception-jax evaluate runs/googlenet_cifar10
  inception-jax evaluate runs/ten_synsets --data cifar10 --archives DIR
  inception-jax evaluate runs/mine --data image_folder --folder DIR --class-map same.json
  inception-jax evaluate runs/mine --config my_other_data.py --split validation

Grayscale and colour pictures, three ways: converted, all as one channel, and a network for each kind:
  inception-jax evaluate runs/plain runs/one_channel --split test
  inception-jax evaluate runs/color --grayscale-run runs/grayscale --split test

Classes are matched by name; letter case, spaces, hyphens and underscores do not matter. Examples of classes that the
network does not have are left out, and counted. With several runs, or a pair, all pictures are evaluated, whichever
each was trained on; else those that data.keep of the run kept. Both networks of a pair get the first one's pictures.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate runs on a split of their own data or of another data set",
        description="Evaluates trained networks on a split, of their own data or of another data set resized to their "
        "input; every example counts once.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="folder of a run")
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
    parser.add_argument("--grayscale-run", metavar="RUN", type=Path, help="network for pictures stored without colours")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best or latest (default: best)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default: 128)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each run: top-1, top-5 and loss, and top-1 on grayscale and on colour pictures where known."""
    # Imported only now: help is answered without waiting for JAX.
    from inception_jax import evaluate
    from inception_jax.run import load_run

    if args.grayscale_run and len(args.run_folders) > 1:
        raise UserError("--grayscale-run makes a pair with one run, not with several")
    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} is not allowed: it must be at least 1")
    process.use_compilation_cache()
    class_map = evaluate.read_class_map(args.class_map) if args.class_map else None
    given = {"name": args.data, "folder": args.folder, "archives": args.archives, "directory": args.data_dir}
    fields = evaluate.source_fields(load_config(find_config(args.config))) if args.config else {}
    fields |= {field: value for field, value in given.items() if value is not None}
    several = len(args.run_folders) > 1 or args.grayscale_run
    keep = args.keep or ("all" if several else None)
    if keep:
        fields["keep"] = keep

    def predict(folder: Path, fields: dict[str, Any]) -> tuple[Any, Any]:
        trained = load_run(folder, args.checkpoint)
        with log_to_stderr():
            dataset = evaluate.load_for(trained, args.split, fields)
            found = evaluate.predictions(trained, dataset, args.split, class_map=class_map, batch_size=args.batch_size)
        return trained, (found, dataset)

    rows: dict[str, dict[str, Any]] = {}
    for folder in args.run_folders:
        trained, (found, dataset) = predict(folder, fields)
        name = str(folder)
        if args.grayscale_run:
            # The same pictures for both: the first run's, unless others are named.
            same = fields if {"name", "folder"} & fields.keys() else evaluate.source_fields(trained.config) | fields
            other, (gray, _) = predict(args.grayscale_run, same)
            if other.class_names != trained.class_names:
                raise UserError(f"{folder} and {args.grayscale_run} have different classes, and so are no pair")
            found, name = evaluate.routed(found, gray), f"{folder} and, for grayscale, {args.grayscale_run}"
        # What the network has no class for, and what could not be read.
        strange = sorted({dataset.class_names[label] for label in _labels(dataset, args.split)[found.labels < 0]})
        rows[name] = {
            "data": dataset.name,
            "split": args.split,
            **evaluate.by_color(found),
            "left_out": int((found.labels < 0).sum()),
            "classes_left_out": strange,
            "not_decoded": int((~found.decoded).sum()),
        }
    print(json.dumps(_finite(rows), indent=2, ensure_ascii=False) if args.json else _table(rows))
    return 0


def _finite(value: Any) -> Any:
    """The same with None for what is not a number, for which JSON has no word: the mean of no examples."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _labels(dataset: Any, split: str) -> Any:
    return dataset.splits[split].all_labels()


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """Aligned columns; below, what was left out."""
    header = ["run", "data", "top-1", "top-5", "loss", "examples"]
    if any("grayscale" in row for row in rows.values()):
        header += ["grayscale", "color"]
    formats = {"top1": ".2%", "top5": ".2%", "loss": ".4f"}
    lines, notes = [header], []
    for name, row in rows.items():
        means = row["all"]
        line = [
            name,
            f"{row['data']}, {row['split']}",
            *(f"{means[mean]:{form}}" if means["count"] else "-" for mean, form in formats.items()),
            f"{means['count']:,}",
        ]
        for kind in header[6:]:
            part = row.get(kind, {"count": 0})
            line.append(f"{part['top1']:.2%} of {part['count']:,}" if part["count"] else "-")
        lines.append(line)
        if row["left_out"]:
            classes = ", ".join(row["classes_left_out"][:10]) + (", ..." if len(row["classes_left_out"]) > 10 else "")
            notes.append(f"{name}: {row['left_out']:,} examples of classes that it does not have: {classes}")
        if row["not_decoded"]:
            notes.append(f"{name}: {row['not_decoded']:,} pictures that could not be decoded")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*aligned, *notes])
