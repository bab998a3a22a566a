"""Real data sets, each prepared, shown and trained on for an epoch by one command each."""

import json

import numpy as np
import pytest
from PIL import Image

from inception_jax.commands import main


@pytest.fixture
def photographs(originals, tmp_path):
    """A table of the 70 photographs at full size: animals, whose synsets have the smaller numbers, and things."""
    paths = sorted((originals / "imagenet-originals").glob("*.JPEG"))
    rows = [f'"{path}",{"animal" if path.name < "n026" else "thing"}' for path in paths]
    table = tmp_path / "photographs.csv"
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place", "classes", "number"),
    [
        ("mnist", "mnist", 10, 70_000),
        ("cifar10", "cifar-10-batches-bin", 10, 60_000),
        ("tiny_imagenet", "tiny-imagenet-200", 20, 11_000),
        ("uc_merced", "ucmerced", 21, 2100),
        ("imagenet_subset", "imagenet10", 10, 1100),
        ("image_folder", "imagenet-originals", 2, 70),
    ],
)
def test_real_data_is_prepared_shown_and_trained_on(
    name, place, classes, number, originals, photographs, prepared, tmp_path, capsys
):
    folder = originals / place
    if not folder.is_dir():
        pytest.skip(f"there is no {place}")
    fields = {"archives": folder}
    if name == "imagenet_subset":
        fields = {"folder": folder, "classes": "all,"}
    if name == "image_folder":
        fields = {"folder": photographs}
    if name not in ("mnist", "cifar10"):  # whose pictures have one size
        fields["image_size"] = 32
    flags = [f"--config.data.{field}={value}" for field, value in fields.items()]
    if name == "image_folder":
        flags += ["--config.data.augment.random_resized_crop=(0.08,1.0)", "--config.data.augment.crop_originals=true"]

    assert main(["data", name, *flags, "--json", f"--sheet={tmp_path / 'sheet.png'}"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert len(page["class_names"]) == classes
    assert sum(page["splits"].values()) == number
    assert page["undecodable"] == []
    assert page["images"]["streamed"] == (name == "image_folder")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10

    run = tmp_path / "run"
    flags += [f"--config.data.name={name}", "--config.num_epochs=1", "--config.num_devices=1", f"--workdir={run}"]
    flags += [
        "--config.model.name=simple_cnn",
        "--config.model.stage_features=(8,16)",
        "--config.log.tensorboard=false",
    ]
    flags += ["--config.batch_size=32", "--config.average_decay=0"]
    if number > 10_000:
        flags += ["--config.data.splits.train=train[:2000]"]
    assert main(["train", "--config=googlenet_digits", *flags]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == 1
    assert summary["test"]["count"] == page["splits"]["test"]
