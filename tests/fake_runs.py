"""Finished runs of a study, made up: what a report needs of them, without training."""

import json
from pathlib import Path

from inception_jax.studies import Claim, Form, Minimum, Study, Variation
from inception_jax.studies.plan import make_plan

EPOCHS = 4
WIDTHS = {"narrow": (4, 8), "wide": (8, 16)}


def make_study(**changes):
    given = {
        "title": "Widths on the digits",
        "source": "nobody.",
        "text": "50 % of a first paragraph & more.\n\nA second_one.",
        "config": "googlenet_digits",
        "fields": {"model.name": "simple_cnn", "model.norm": "batch", "num_epochs": EPOCHS, "log.tensorboard": False},
        "variations": {
            name: Variation({"model.stage_features": features}, published={"best_test_top1": 0.9})
            for name, features in WIDTHS.items()
        },
        "forms": {"full": Form(seeds=(0, 1, 2)), "smoke": Form({"num_epochs": 1}, seeds=(0, 1))},
        "minimum": Minimum(images=1000, epochs=2, seeds=2),
        "measures": ("best_test_top1", "highest_test_top1", "epoch_of_lowest_validation_loss", "parameters"),
        "claims": (Claim("wider is better", "best_test_top1", "wide", "narrow"),),
    }
    return Study(**{**given, **changes})


def fake_plan(folder, study=None, form="full", **top1):
    """A plan whose runs are finished, with test accuracies by variation, one for each seed."""
    plan = make_plan("widths", study or make_study(), form, folder)
    for planned in plan.runs:
        values = top1.get(planned.variation)
        if values is not None:
            finish(planned, values[planned.seed])
    return plan


def finish(planned, top1, epochs=EPOCHS):
    planned.folder.mkdir(parents=True)
    config = planned.load_config()
    (planned.folder / "config.json").write_text(config.to_json())
    columns = ("step", "epoch", "train_loss", "train_top1", "validation_loss", "validation_top1", "test_top1")
    rows = [
        (20 * epoch, epoch, 2 / epoch, 0.1 * epoch, 1 + (epoch - 3) ** 2, 0.2 * epoch, top1 + 0.01 * (epoch == 2))
        for epoch in range(1, epochs + 1)
    ]
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    (planned.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    means = {"loss": 1.5, "top1": top1, "top5": 0.99, "count": 355}
    summary = {
        "name": planned.folder.name, "steps": 20 * epochs, "epochs": float(epochs), "test": means,
        "best": {"step": 60, "epoch": 3.0, "metric": "validation_top1", "value": 0.6, "test": means},
        "stopped": "completed", "images_per_second": 1000.0, "seconds": 90.0, "training_seconds": 30.0,
        "parameters": 1182, "device": "1 x cpu", "versions": {"jax": "0.12.0"},
    }  # fmt: skip
    (planned.folder / "summary.json").write_text(json.dumps(summary))


def write_study(path):
    """Writes a study file with `make_study()`; returns its path as text."""
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from fake_runs import make_study as get_study",
    )
    path.write_text("\n".join(lines) + "\n")
    return str(path)
