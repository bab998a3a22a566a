"""`inception-jax data`: prepares a data set and shows what it contains."""

import argparse
import inspect
from collections import Counter
from typing import Any

import numpy as np

from inception_jax import data
from inception_jax.commands import flags
from inception_jax.config import default_config
from inception_jax.config.files import override
from inception_jax.data import streaming
from inception_jax.data.words import shown_names
from inception_jax.errors import UserError
from inception_jax.process import log_to_stderr
from inception_jax.text import columns, json_text, printable, say

EXAMPLES = """\
examples:
  inception-jax data                                       # lists the data sets
  inception-jax data cifar10 --archives DIR                # prepares it from downloaded archives
  inception-jax data image_folder --folder DIR --image-size 224 --sheet sheet.png
  inception-jax data --config=googlenet_cifar10 --sheet augmented.png
  inception-jax data tiny_imagenet --config.data.keep=grayscale
  inception-jax data cifar10 --verify

--sheet draws some images, each with augmented versions beside it or, without augmentation, others of its class.
"""
CLASSES_SHOWN = 12  # with their counts; if there are more, only the largest and the smallest
NAMES_SHOWN = 3  # images that cannot be decoded


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "data",
        run,
        help="prepare a data set and show what it contains",
        description="Downloads a data set, or reads existing files, checks and decodes every picture once, and shows "
        "its splits, classes, image sizes and color modes.",
        examples=EXAMPLES,
        takes_fields=True,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"{', '.join(data.DATASETS)}, or module:Name")
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="config whose data and augmentation to show")
    flags.add_places(parser)
    parser.add_argument("--image-size", type=int, metavar="N", help="resize all pictures to N x N pixels")
    parser.add_argument("--sheet", metavar="FILE", type=flags.path, help="write a contact sheet as PNG")
    parser.add_argument("--verify", action="store_true", help="read the prepared data again and check its digests")
    flags.add_json(parser, "print JSON with the counts of all classes")


def run(args: argparse.Namespace) -> int:
    """Prints a description of the data set, or the list of data sets."""
    if not args.name and not args.config:
        if args.fields or args.folder:
            raise UserError("give a data set, or a config with --config")
        say(_list())
        return 0
    config = flags.config(args.config) if args.config else default_config()
    given = {"name": args.name, "image_size": args.image_size} | flags.places(args)
    for field, value in given.items():
        if value is not None:
            config.data[field] = value
    override(config, ["", *args.fields])
    from inception_jax.config import validate

    validate(config)
    with log_to_stderr():
        published, verified = _published(config), None
        if args.verify:
            if published is None:
                raise UserError(f"data set {config.data.name!r} is not stored on disk, so --verify cannot check it")
            verified = published.verify()
        page, dataset = _describe(config, published)
        if verified:
            page["verified"] = {"files": verified[0], "gib": verified[1] / 2**30}
        if args.sheet:
            if dataset is None:
                raise UserError("a contact sheet needs images of one size: give --image-size")
            from inception_jax.trained.contact_sheet import contact_sheet

            contact_sheet(dataset, config).save(args.sheet)
            page["sheet"] = str(args.sheet)
    say(json_text(page, indent=2) if args.json else _text(page))
    return 0


def _list() -> str:
    """The data sets by name, with the first line of their docstrings."""
    lines = []
    for name, source in data.DATASETS.items():
        first = (inspect.getdoc(source) or "").partition("\n")[0]
        lines.append((name, first if isinstance(source, type) else f"{first} Read in place: --folder"))
    return "\n".join(columns(lines))


def _published(config: Any) -> data.Published | None:
    """The config's data set, prepared if necessary; None for arrays."""
    if not data.is_encoded(config.data.name):
        return None
    from inception_jax.runs.dataset import data_options

    location, selection, _ = data_options(config)
    return data.published(config.data.name, location, selection)


def _describe(config: Any, published: data.Published | None) -> tuple[dict[str, Any], Any]:
    """The data set's properties as JSON values, and the data set; None if it needs an image size."""
    from inception_jax.runs.dataset import load_data

    section = config.data
    page: dict[str, Any] = {"name": section.name}
    dataset = None
    if published is None or section.image_size or len(published.sizes()) == 1:
        dataset = load_data(config)
        page["class_names"] = dataset.shown_names
        page["splits"] = {split: len(part) for split, part in dataset.splits.items()}
        page["per_class"] = {
            split: np.bincount(part.all_labels(), minlength=dataset.num_classes).tolist()
            for split, part in dataset.splits.items()
        }
        height, width, channels = dataset.image_shape
        page["images"] = {
            "shape": [height, width, channels],
            "gib": sum(len(part) for part in dataset.splits.values()) * height * width * channels / 2**30,
            "streamed": any(isinstance(part, streaming.StreamingSplit) for part in dataset.splits.values()),
        }
    if published is not None:
        if dataset is None:
            published.report_errors(section.on_error)
            decodable = {split: base.order[base.facts.decodable[base.order]] for split, base in published.bases.items()}
            page["per_class"] = {
                split: np.bincount(published.bases[split].labels[rows], minlength=len(published.class_names)).tolist()
                for split, rows in decodable.items()
            }
        page["folder"] = str(published.folder)
        page["class_names"] = shown_names(published.class_names, published.words)
        page["published"] = {split: len(base.order) for split, base in published.bases.items()}
        stored = list(published.stored.values())
        sides = [
            (height, width)
            for base in stored
            for height, width, error in zip(base.facts.heights, base.facts.widths, base.facts.errors, strict=True)
            if not error
        ]
        by_area = sorted(sides, key=lambda side: side[0] * side[1])
        page["sizes"] = {
            "smallest": by_area[0],
            "median": by_area[len(by_area) // 2],
            "largest": by_area[-1],
            "different": len(set(sides)),
        }
        modes = Counter(mode for base in stored for mode in base.facts.modes if mode)
        page["modes"] = dict(modes.most_common())
        page["grayscale"] = int(sum((base.facts.grayscale & base.facts.decodable).sum() for base in stored))
        page["undecodable"] = [list(pair) for pair in published.undecodable()]
    return page, dataset


def _text(page: dict[str, Any]) -> str:
    """The description as aligned lines."""
    names = page["class_names"]
    title = f"{page['name']}: {len(names)} classes" + (f", in {page['folder']}" if "folder" in page else "")
    lines = [printable(title)]
    order = [split for split in ("train", "validation", "test") if split in page["per_class"]]
    for split in [*order, *(page["per_class"].keys() - set(order))]:
        counts = np.array(page["per_class"][split])
        low, high = counts.min(), counts.max()
        each = f"{low:,} of each class" if low == high else f"{low:,} to {high:,} of each class"
        lines.append(f"  {split:<12} {counts.sum():>9,}  {each}")
    if "images" in page:
        height, width, channels = page["images"]["shape"]
        how = "decoded as they are read" if page["images"]["streamed"] else "decoded once, memory-mapped"
        lines.append(f"  images       {height}x{width}x{channels}, {page['images']['gib']:.2f} GiB, {how}")
    else:
        lines.append("  images       of several sizes: give --image-size to choose one for training")
    if "sizes" in page:
        sizes = page["sizes"]
        if sizes["different"] == 1:
            lines.append(f"  sizes        all {_side(sizes['median'])} (height x width)")
        else:
            lines.append(
                f"  sizes        {_side(sizes['smallest'])} to {_side(sizes['largest'])}, median "
                f"{_side(sizes['median'])} (height x width), {sizes['different']:,} different"
            )
        total = sum(page["modes"].values())
        kinds = ", ".join(f"{number:,} {mode}" for mode, number in page["modes"].items())
        lines.append(f"  modes        {kinds}; {page['grayscale'] / total:.1%} grayscale")
        bad = page["undecodable"]
        if bad:
            shown = ", ".join(printable(f"{name} ({error})") for name, error in bad[:NAMES_SHOWN])
            lines.append(f"  undecodable  {len(bad):,}: {shown}{', ...' if len(bad) > NAMES_SHOWN else ''}")
    if "verified" in page:
        verified = page["verified"]
        lines.append(f"  verified     {verified['files']:,} files, {verified['gib']:.2f} GiB: all digests match")
    if "train" in page["per_class"]:
        lines += _classes(names, page["per_class"]["train"])
    if "sheet" in page:
        lines.append(f"  sheet        {printable(page['sheet'])}")
    return "\n".join(lines)


def _classes(names: list[str], counts: list[int]) -> list[str]:
    """Classes and their numbers of training examples; if there are many, the largest and the smallest."""
    order, half = range(len(names)), CLASSES_SHOWN // 2
    if many := len(names) > CLASSES_SHOWN:
        order = sorted(order, key=lambda label: -counts[label])
        order = [*order[:half], *order[-half:]]
    lines = columns([(printable(names[label]), f"{counts[label]:>8,}") for label in order])
    if many:
        lines.insert(half, "...")
    return ["", "training examples per class", *(f"  {line}" for line in lines)]


def _side(size: Any) -> str:
    return f"{size[0]}x{size[1]}"
