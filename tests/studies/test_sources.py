"""The effective config of every variation beside what its source says, as it was read in the source."""

import pytest

from inception_jax.studies.plan import load_study, make_plan

# Wyatt, Deeper networks for image classification, section 2.2: tables of settings. Fields in the order of the tables.
WYATT = {
    "optimizer.name": "sgd", "batch_size": 256, "optimizer.momentum": 0.9, "optimizer.nesterov": False,
    "loss.label_smoothing": 0.0, "schedule.warmup_epochs": 0.0, "data.augment.pad_and_crop": 0,
    "average_decay": 0.0, "init_from": None,
}  # fmt: skip
AUGMENTED = {
    "data.name": "cifar10", "data.augment.horizontal_flip": 0.5, "data.augment.rotation": 10.0,
    "data.augment.brightness": 0.1, "data.augment.contrast": 0.1, "data.augment.saturation": 0.1,
    "data.augment.random_resized_crop": (0.5, 1.0),
}  # fmt: skip
NOT_AUGMENTED = {
    "data.name": "mnist", "data.augment.horizontal_flip": 0.0, "data.augment.rotation": 0.0,
    "data.augment.brightness": 0.0, "data.augment.contrast": 0.0, "data.augment.saturation": 0.0,
    "data.augment.random_resized_crop": (), "data.image_size": 32,
}  # fmt: skip
GOOGLENET = {
    "model.name": "googlenet", "model.norm": "batch", "model.stem": "imagenet", "model.pool_4": 2,
    "model.initializer": "paper", "schedule.name": "step", "schedule.learning_rate": 0.1, "schedule.factor": 0.96,
    "schedule.every_epochs": 8, "optimizer.weight_decay": 0.0,
}  # fmt: skip
RESNET = {
    "model.name": "resnet18", "model.stem": "imagenet", "schedule.name": "plateau", "schedule.learning_rate": 0.1,
    "schedule.patience": 1, "schedule.factor": 0.1, "optimizer.weight_decay": 0.0,
}  # fmt: skip
VGG = {
    "model.name": "vgg19", "schedule.name": "plateau", "schedule.learning_rate": 0.01, "schedule.factor": 0.1,
    "optimizer.weight_decay": 5e-4,
}  # fmt: skip
WHOLE = {"data.splits.train": "train", "data.splits.validation": "", "data.splits.test": "test"}


def googlenet(residual="none", side=3, heads=True):
    return WYATT | GOOGLENET | {"model.residual": residual, "model.kernel_5x5": side, "model.aux_heads": heads}


# (study, variation): fields in every form that follows the source.
SOURCES = {
    ("residuals", "plain_3x3"): AUGMENTED | googlenet() | {"num_epochs": 160},
    ("residuals", "plain_5x5"): AUGMENTED | googlenet(side=5),
    ("residuals", "residual_3x3"): AUGMENTED | googlenet("identity"),
    ("residuals", "residual_5x5"): AUGMENTED | googlenet("identity", 5) | {"num_epochs": 160},
    ("residuals", "without_heads"): AUGMENTED | googlenet(heads=False),
    ("aux_heads", "with_heads"): AUGMENTED | googlenet(),
    ("aux_heads", "without"): AUGMENTED | googlenet(heads=False),
    ("deeper_cifar10", "googlenet"): AUGMENTED | googlenet(),
    ("deeper_cifar10", "resnet18"): WYATT | AUGMENTED | RESNET,
    ("deeper_cifar10", "vgg19"): WYATT | AUGMENTED | VGG | {"schedule.patience": 5},
    ("deeper_mnist", "googlenet"): NOT_AUGMENTED | googlenet(),
    ("deeper_mnist", "resnet18"): WYATT | NOT_AUGMENTED | RESNET,
    ("deeper_mnist", "vgg19"): WYATT | NOT_AUGMENTED | VGG | {"schedule.patience": 5},
    **{
        ("patience", f"patience_{patience}"): WYATT | AUGMENTED | VGG | {"schedule.patience": patience}
        for patience in (0, 1, 5, 10, 15)
    },
}
# What a form changes knowingly; its note says so.
DEPARTURES = {("patience", "cores"): {"model.name": "vgg11"}}


@pytest.mark.parametrize("form", ["full", "cores"])
@pytest.mark.parametrize(("study", "variation"), SOURCES)
def test_variations_are_the_sources(tmp_path, study, variation, form):
    expected = SOURCES[study, variation] | DEPARTURES.get((study, form), {})
    if form == "cores":
        expected = expected | WHOLE
    planned = make_plan(study, load_study(study)[1], form, tmp_path, only=[variation]).runs[0]
    config = planned.load_config()
    assert {field: field_of(config, field) for field in expected} == expected


def field_of(config, name):
    for part in name.split("."):
        config = config[part]
    return config
