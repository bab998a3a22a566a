"""The effective config of every variation beside what its source says, as it was read in the source."""

import math

import pytest
from networks import shapes

from inception_jax.runs.folder import config_differences
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


# Mahmud 2024, section 5.6: batches of 16, a learning rate of 1e-4, 30 epochs, crop, flip and zoom; 80 % for training.
MAHMUD = {
    "batch_size": 16, "num_epochs": 30, "schedule.name": "constant", "schedule.learning_rate": 1e-4,
    "data.name": "imagenet_subset", "data.image_size": 224, "data.splits.train": "train[:80%]",
    "data.splits.validation": "train[80%:]", "data.augment.horizontal_flip": 0.5,
    "data.augment.zoom": 0.2, "data.augment.pad_and_crop": 16,
}  # fmt: skip
# The tutorial's code: the data, `compile` and `fit`.
TUTORIAL = {
    "data.name": "mnist", "data.pad": 2, "data.image_size": 224, "data.channels": 3, "data.normalization": "unit",
    "data.splits.train": "train[:58000]", "data.splits.validation": "train[58000:]", "batch_size": 64,
    "optimizer.name": "adam", "optimizer.epsilon": 1e-7, "schedule.name": "constant", "schedule.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0, "loss.aux_weight": 0.3, "loss.label_smoothing": 0.0, "model.name": "googlenet",
    "model.norm": "none", "model.aux_heads": True, "model.aux_pool": "paper", "model.dropout_rate": 0.4,
    "model.initializer": "glorot_uniform", "data.augment.horizontal_flip": 0.0, "data.augment.pad_and_crop": 0,
}  # fmt: skip
# Skagerström, Price & Lindqvist 2018, tables 1 to 3 and section 4.
SKAGERSTROM = {
    "data.name": "tiny_imagenet", "data.keep": "color", "data.augment.horizontal_flip": 0.0,
    "data.augment.random_resized_crop": (), "loss.label_smoothing": 0.0, "optimizer.momentum": 0.0,
}  # fmt: skip


def tiny_vgg(name, optimizer, rate, epochs, decay=0.0, layers=(), rate_decay=None):
    """Keras's L2 is twice our weight decay; its pixels are divided by 255, or have the mean of each channel removed."""
    own = {"model.name": f"tiny_vgg_{name}", "optimizer.name": optimizer, "schedule.learning_rate": rate}
    own |= {"optimizer.weight_decay": 2 * decay, "optimizer.weight_decay_layers": layers, "num_epochs": epochs}
    own |= {"data.normalization": "mean_255" if decay else "unit"}
    own |= {"schedule.name": "inverse_time" if rate_decay else "constant"}
    return SKAGERSTROM | own | ({"schedule.decay_rate": rate_decay} if rate_decay else {})


TINY_VGG_F = tiny_vgg("f", "adam", 1e-3, 100, decay=5e-3, layers=("conv?_3",), rate_decay=1e-5)
# GoogLeNet - Inception architecture, slides of a course: the network at 256 pixels, with 512 statistics of batch norm.
SLIDES = {
    "data.name": "uc_merced", "data.image_size": 256, "model.name": "googlenet", "model.norm": "stem",
    "model.aux_heads": True,
}  # fmt: skip
# The slides name the versions; one recipe for all of them is the study's own.
VERSIONS = {
    "data.name": "cifar10", "model.stem": "small", "batch_size": 128, "optimizer.name": "sgd",
    "schedule.name": "cosine", "loss.label_smoothing": 0.1,
}  # fmt: skip
# Skagerström, Price & Lindqvist, section 5.1: grayscale pictures in the same network, or in one of their own.
ARMS = {"data.name": "tiny_imagenet", "model.name": "tiny_vgg_f", "optimizer.name": "adam"}

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
    ("simple_against_googlenet", "simple"): MAHMUD | {"model.name": "simple_cnn"},
    ("simple_against_googlenet", "googlenet"): MAHMUD
    | {"model.name": "googlenet", "model.norm": "lrn", "model.aux_heads": False},
    ("mnist_tutorial", "paper_kernels"): TUTORIAL,
    ("mnist_tutorial", "tutorial_kernels"): TUTORIAL
    | {"model.kernel_3x3": 1, "model.kernel_5x5": 1, "model.pool_padding": "valid"},
    ("tiny_vgg", "a"): tiny_vgg("a", "sgd", 0.01, 20),
    ("tiny_vgg", "b"): tiny_vgg("b", "adam", 1e-3, 20),
    ("tiny_vgg", "c"): tiny_vgg("c", "adam", 1e-3, 20),
    ("tiny_vgg", "d"): tiny_vgg("d", "adam", 1e-3, 20),
    ("tiny_vgg", "d_regularized"): tiny_vgg("d_regularized", "adam", 1e-3, 20, decay=1e-3),
    ("tiny_vgg", "e"): tiny_vgg("e", "adam", 1e-2, 60, decay=1e-3, layers=("conv?_3", "fc?"), rate_decay=1e-6),
    ("tiny_vgg", "f"): TINY_VGG_F,
    ("uc_merced", "slides"): SLIDES,
    ("uc_merced", "slides_apart"): SLIDES | {"data.name": "uc_merced_apart"},
    ("inception_modules", "naive"): {"data.name": "cifar10", "model.name": "googlenet_naive"},
    ("inception_modules", "reduced"): {"data.name": "cifar10", "model.name": "googlenet"},
    **{
        ("inception_versions", variation): VERSIONS | {"model.name": name}
        for variation, name in {
            "v1": "googlenet",
            "bn": "bn_inception",
            "v2": "inception_v2",
            "v3": "inception_v3",
            "v4": "inception_v4",
        }.items()
    },
    ("grayscale", "converted"): ARMS | {"data.keep": "all", "data.channels": None},
    ("grayscale", "one_channel"): ARMS | {"data.keep": "all", "data.channels": 1},
    ("grayscale", "color_only"): ARMS | {"data.keep": "color", "data.channels": None},
    ("tiny_vgg_search", "f"): TINY_VGG_F | {"model.dropout_rate": 0.0},
    **{
        ("patience", f"patience_{patience}"): WYATT | AUGMENTED | VGG | {"schedule.patience": patience}
        for patience in (0, 1, 5, 10, 15)
    },
}
# What a form changes knowingly; its note says so.
DEPARTURES = {
    ("patience", "cores"): {"model.name": "vgg11"},
    ("tiny_vgg_search", "cores"): {"num_epochs": 5},
}
# In the form `cores` these train on all images, without a validation split, as their sources do.
ON_ALL_IMAGES = (
    "residuals",
    "aux_heads",
    "deeper_cifar10",
    "deeper_mnist",
    "patience",
    "tiny_vgg",
    "inception_versions",
)


@pytest.mark.parametrize("form", ["full", "cores", "cpu"])
def test_the_residual_row_of_finetuning_differs_in_the_shortcuts_alone(tmp_path, form):
    """And they have no parameters, so that the weights of the plain network fit."""
    plan = make_plan("finetuning", load_study("finetuning")[1], form, tmp_path)
    plain, residual = (plan.runs_of(row)[0].load_config() for row in ("finetuned", "finetuned_residual"))
    assert config_differences(plain, residual) == ["model.residual was None, now 'identity'"]
    options = {"size": 64, "num_classes": 21, "stem": "small_pooled"}
    _, ours = shapes("googlenet", residual="identity", **options)
    assert ours == shapes("googlenet", **options)[1]


@pytest.mark.parametrize("form", ["full", "cores"])
@pytest.mark.parametrize(("study", "variation"), SOURCES)
def test_variations_are_the_sources(tmp_path, study, variation, form):
    expected = SOURCES[study, variation] | DEPARTURES.get((study, form), {})
    if form == "cores" and study in ON_ALL_IMAGES:
        expected = expected | WHOLE
    planned = make_plan(study, load_study(study)[1], form, tmp_path, only=[variation]).runs[0]
    config = planned.load_config()
    assert {field: field_of(config, field) for field in expected} == expected


@pytest.mark.parametrize("form", ["full", "cores"])
def test_rows_of_uc_merced_have_a_twin_that_differs_in_the_places_alone(tmp_path, form):
    plan = make_plan("uc_merced", load_study("uc_merced")[1], form, tmp_path)
    names = [name for name in plan.variations if f"{name}_apart" in plan.variations]
    assert names == ["slides", "best", "from_tiny_imagenet"]
    for name in names:
        (ours, apart) = (plan.runs_of(row)[0].load_config() for row in (name, f"{name}_apart"))
        assert config_differences(ours, apart) == ["data.name was 'uc_merced', now 'uc_merced_apart'"]


def test_the_search_contains_what_the_source_tried():
    ranges = load_study("tiny_vgg_search")[1].search.fields
    tried = {  # E's and F's rates, twice their L2, and dropout of A to F and of the experiment between D and E
        "schedule.learning_rate": (1e-2, 1e-3),
        "optimizer.weight_decay": (2e-3, 1e-2),
        "model.dropout_rate": (0.0, 0.3, 0.7),
    }
    assert ranges.keys() == tried.keys()
    assert all(ranges[name].low <= value <= ranges[name].high for name, values in tried.items() for value in values)


@pytest.mark.parametrize("form", ["full", "cores", "cpu"])
def test_the_search_is_fine_around_its_best_draw(tmp_path, form):
    name, study = load_study("tiny_vgg_search")
    first = make_plan(name, study, form, tmp_path)
    draws = [row for row in first.variations if row.startswith("draw")]
    best = draws[5]
    plan = make_plan(name, study, form, tmp_path, found={row: float(row == best) for row in draws})
    finer = [row for row in plan.variations if row.startswith("finer")]
    assert (len(draws), len(finer)) == (12, 6)
    for row in finer:
        planned = plan.runs_of(row)[0]
        planned.check()
        config = planned.load_config()
        rate, centre = config.schedule.learning_rate, plan.variations[best].fields["schedule.learning_rate"]
        assert abs(math.log(rate / centre)) <= math.log(100) / 8 + 1e-3
        # The table shows what was drawn, and nothing but that differs from the row with the source's settings.
        assert plan.variations[row].note.startswith(f"learning_rate {rate}, weight_decay ")
        differing = {text.split()[0] for text in config_differences(plan.runs_of("f")[0].load_config(), config)}
        assert differing == {*study.search.fields}


def field_of(config, name):
    for part in name.split("."):
        config = config[part]
    return config
