"""Trains every registered network on the digits from scratch: its test accuracy after a short run, and the time.

Each is trained by the command, in its own process and folder, until 97 % of the validation digits are classified
correctly or its epochs are over. Networks for large images use their stem for small ones, or enlarged images. To train
a network again, remove its folder. Prints Markdown.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from pathlib import Path

from inception_jax.models import create_model, list_models

EXAMPLES = """\
examples, in the repository's root:
  python benchmarks/every_network.py
  python benchmarks/every_network.py 'resnet*' 'vgg*_bn' --workdir runs/some
"""
ADAM: dict[str, object] = {"optimizer.name": "adam", "schedule.learning_rate": 1e-3}
DEEP: dict[str, object] = {
    "model.stem": "small", "model.zero_init_residual": True, "batch_size": 32, "num_epochs": 6
}  # fmt: skip
# Deep, without shortcuts: without weight averaging they stayed below 95 % in this time.
AVERAGED = ADAM | {
    "model.stem": "small", "data.image_size": 10, "batch_size": 32, "schedule.warmup_epochs": 0.5
}  # fmt: skip
# Config fields by name pattern, of which the first match is used, on top of googlenet_digits and PLAIN.
FIELDS: dict[str, dict[str, object]] = {
    "alexnet": ADAM | {"model.stem": "small", "schedule.learning_rate": 3e-4},
    "bn_inception": {"data.image_size": 64},
    "googlenet*": {"model.stem": "small"},
    "inception_resnet*": ADAM | {"model.stem": "small", "num_epochs": 4},
    "inception_v4": AVERAGED
    | {"num_epochs": 4, "average_decay": 0.9, "loss.label_smoothing": 0.1, "optimizer.weight_decay": 0.0}
    | {"data.splits.train": "train[:1248]"},  # of 1,298, to stay below five minutes
    "inception*": AVERAGED | {"num_epochs": 5, "average_decay": 0.97, "schedule.learning_rate": 5e-4},
    "resnet1[05]*": DEEP,
    "resnet50": DEEP | {"data.image_size": 16},
    "resnet*": {"model.stem": "small"},
    "simple_cnn": ADAM,
    "small_inception": {},
    # Without batch norm, small kernels need many updates before they learn anything.
    "tiny_vgg_[ac]": ADAM | {"data.image_size": 32, "model.initializer": "he_normal"},
    "tiny_vgg*": ADAM | {"data.image_size": 32},
    "vgg19_bn": {"model.classifier": "mean", "schedule.learning_rate": 0.01},
    "vgg*_bn": {"model.classifier": "mean"},
    "vgg*": ADAM | {"model.classifier": "mean", "schedule.learning_rate": 2e-4},
}
# The same for every network: no augmentation, so that a few epochs suffice.
PLAIN: dict[str, object] = {
    "num_epochs": 10, "evaluate.stop_at": 0.97, "schedule.learning_rate": 0.05, "average_decay": 0.0,
    "data.augment.rotation": 0.0, "data.augment.zoom": 0.0,
}  # fmt: skip
HEADER = "| network | parameters | image size | test top-1 | epochs | seconds |\n| --- | --- | --- | --- | --- | --- |"


def fields_of(name: str) -> dict[str, object]:
    """The config fields for a network; its images are 8x8, like the digits, or the smallest size that it supports."""
    fields = next((fields for pattern, fields in FIELDS.items() if fnmatch.fnmatch(name, pattern)), {})
    options = {key.removeprefix("model."): value for key, value in fields.items() if key.startswith("model.")}
    smallest = max(8, create_model(name, num_classes=10, **options).min_image_size)
    return {"model.name": name, "data.image_size": smallest} | fields


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("patterns", nargs="*", default=["*"], help="names or shell patterns (default: all)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/every_network"), help="(default: %(default)s)")
    options, more = parser.parse_known_args(argv)
    print(HEADER, flush=True)
    for name in list_models():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in options.patterns):
            continue
        folder = options.workdir / name
        fields = PLAIN | fields_of(name)
        command = [sys.executable, "-m", "inception_jax.main", "--config=googlenet_digits", f"--workdir={folder}"]
        command += [f"--config.{field}={value}" for field, value in fields.items()] + more
        started = time.perf_counter()
        code = subprocess.run(command).returncode
        if code:
            print(f"| {name} | failed with code {code} | | | | |", flush=True)
            continue
        summary = json.loads((folder / "summary.json").read_text())
        took = time.perf_counter() - started
        print(
            f"| {name} | {summary['parameters']:,} | {fields['data.image_size']} | {summary['test']['top1']:.2%} "
            f"| {summary['epochs']:.0f} | {took:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
