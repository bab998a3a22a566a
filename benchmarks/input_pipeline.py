"""Images per second of the input pipeline, against torchvision's DataLoader with ImageFolder on the same cores.

Four cases: 32 px images in memory, JPEG files of 64 px and of 224 px, and full-size photographs with random resized
crop to 224 px. Both sides end with what a network reads, a float32 batch, flipped at random and normalized:
torchvision's transforms do that for each picture in the workers, ours on the device for the batch. The pictures are
those of a folder of classes; without one they are generated. The sides take turns. Prints Markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from inception_jax import process

EXAMPLES = """\
examples, in the repository's root:
  python benchmarks/input_pipeline.py --peer-python PYTHON_WITH_TORCHVISION
  python benchmarks/input_pipeline.py --cases originals --originals ILSVRC/train
"""
BATCH_SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = {"memory": 32, "small": 64, "jpeg": 224, "originals": 224}  # the side of the network's input, pixels
GENERATED = {"small": (64, 64, 2000), "jpeg": (224, 224, 800), "originals": (375, 500, 300)}  # height, width, number


def generated(root: Path, case: str) -> Path:
    """A folder of two classes of JPEGs that are about as hard to decode as photographs."""
    height, width, number = GENERATED[case]
    generator = np.random.default_rng(0)
    for index in range(number):
        place = root / case / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        fine = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        fine += generator.integers(-20, 21, fine.shape, np.int16)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(place / f"{index}.jpg", quality=90)
    return root / case


def ours(case: str, folder: str | None, workers: int, seconds: float) -> float:
    """Images per second, up to the network's input."""
    import jax
    from jax import numpy as jnp

    from inception_jax import data
    from inception_jax.data import augment, order
    from inception_jax.data.dataset import train_batches
    from inception_jax.data.streaming import RandomCrop

    size = CASES[case]
    if folder is None:
        images = np.random.default_rng(0).integers(0, 256, (10_000, size, size, 3), np.uint8)
        split = data.from_arrays(train=(images, np.arange(10_000) % 10)).splits["train"]
    else:
        with tempfile.TemporaryDirectory() as directory:
            location = data.Location(directory, folder=folder)
            selection = data.Selection(hold_out=0, splits={"train": "train"})
            decoding = data.Decoding(size, pipeline="streaming")
            split = data.load("image_folder", location, selection, decoding).splits["train"]

    @jax.jit
    def prepare(key, images):
        images = augment.augment(key, augment.to_unit(images, jnp.float32), horizontal_flip=0.5)
        return augment.normalize(images, normalization="mean_std", mean=MEAN, std=STD)

    batches = train_batches(
        split,
        partial(order.batch_indices, 0, num_examples=len(split), batch_size=BATCH_SIZE),
        0,
        10**9,
        num_workers=workers,
        crop=RandomCrop(0, (0.08, 1.0), (3 / 4, 4 / 3)) if case == "originals" else None,
        steps_per_epoch=len(split) // BATCH_SIZE,
    )
    key = jax.random.key(0)
    rate = _rate((prepare(jax.random.fold_in(key, 0), images).block_until_ready() for images, _ in batches), seconds)
    batches.close()
    return rate


def theirs(case: str, folder: str | None, workers: int, seconds: float) -> float:
    """The same for torchvision's pipeline, written like its reference scripts."""
    import torch

    libraries = [torch.library.Library("torchvision", "FRAGMENT")]
    if not hasattr(torch.ops.torchvision, "nms"):  # torchvision for another build of PyTorch lacks its two operators
        for name in ("nms", "qnms"):
            libraries[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets, transforms

    size = CASES[case]
    chain = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if case == "originals":
        chain.insert(0, transforms.RandomResizedCrop(size))
    if folder is None:
        images = np.random.default_rng(0).integers(0, 256, (10_000, size, size, 3), np.uint8)
        dataset: Any = _Arrays(images, transforms.Compose([transforms.ToPILImage(), *chain]))
    else:
        dataset = datasets.ImageFolder(folder, transforms.Compose(chain))
    loader = torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )

    def forever():
        while True:
            for images, _ in loader:
                yield images.shape

    return _rate(forever(), seconds)


class _Arrays:
    """Images in memory as a torch data set."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), 0


def _rate(batches, seconds: float) -> float:
    for _ in range(5):  # workers start and programs are compiled
        next(batches)
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        number += 1
    return number * BATCH_SIZE / (time.perf_counter() - started)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--workers", type=int, default=2, help="torchvision's worker processes (default: 2)")
    parser.add_argument("--our-workers", type=int, default=0, help="our worker processes (default: 0, threads)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured in each turn (default: %(default)s)")
    parser.add_argument("--peer-python", default=sys.executable, help="Python with torchvision")
    for case in GENERATED:
        parser.add_argument(f"--{case}", metavar="DIR", help="folder of classes for this case (default: generated)")
    parser.add_argument("--turn", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args(argv)
    if options.turn:
        turn = json.loads(options.turn)
        if turn["side"] == "ours":
            process.tune()  # as the commands do
        print(json.dumps({"ours": ours, "theirs": theirs}[turn.pop("side")](**turn)))
        return
    print(
        "| case | ours, images/s | torchvision, images/s | ratio (min to max) |\n| --- | --- | --- | --- |", flush=True
    )
    with tempfile.TemporaryDirectory() as root:
        for case in options.cases:
            folder = None if case == "memory" else str(getattr(options, case) or generated(Path(root), case))
            rates: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(options.rounds):
                for side, python, workers in (
                    ("ours", sys.executable, options.our_workers),
                    ("theirs", options.peer_python, options.workers),
                ):
                    turn = {
                        "side": side,
                        "case": case,
                        "folder": folder,
                        "workers": workers,
                        "seconds": options.seconds,
                    }
                    command = [python, __file__, "--turn", json.dumps(turn)]
                    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                    rates[side].append(json.loads(result.stdout.splitlines()[-1]))
            ratios = [mine / other for mine, other in zip(*rates.values(), strict=True)]
            print(
                f"| {case}, {CASES[case]} px | {median(rates['ours']):,.0f} | {median(rates['theirs']):,.0f} "
                f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
