"""What several studies have in common: published recipes, and the fields of forms."""

from collections.abc import Mapping
from typing import Any

# Wyatt, Deeper networks for image classification, section 2.2: batches of 256, SGD with momentum 0.9, from scratch. The
# weight decay of ResNet-18 and GoogLeNet is not in the tables, and taken as none.
WYATT: Mapping[str, Any] = {
    "batch_size": 256,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 0.0,
    "loss.label_smoothing": 0.0,
    "schedule.warmup_epochs": 0.0,
    "evaluate.splits": ("validation", "test"),
}
# Horizontal flips, rotation, color jitter and random resized crops on CIFAR-10. The strengths are ours.
WYATT_AUGMENTATION: Mapping[str, Any] = {
    "data.augment.pad_and_crop": 0,
    "data.augment.horizontal_flip": 0.5,
    "data.augment.rotation": 10.0,
    "data.augment.brightness": 0.1,
    "data.augment.contrast": 0.1,
    "data.augment.saturation": 0.1,
    "data.augment.random_resized_crop": (0.5, 1.0),
}
# Torchvision's network: the ImageNet stem also for images of 32 pixels, windows of 2x2 in the last max pool, kernels of
# 3x3 where the paper has 5x5, both auxiliary heads, truncated normal kernels.
WYATT_GOOGLENET: Mapping[str, Any] = {
    "model.stem": "imagenet",
    "model.pool_4": 2,
    "model.kernel_5x5": 3,
    "model.residual": "none",
    "model.initializer": "paper",
    "model.aux_heads": True,
    "schedule.name": "step",
    "schedule.learning_rate": 0.1,
    "schedule.factor": 0.96,
    "schedule.every_epochs": 8,
}
# "Decrease by 10x after plateau", with a patience of 1 and of 5 epochs.
_PLATEAU = {"schedule.name": "plateau", "schedule.metric": "validation_top1", "schedule.mode": "max"}
WYATT_RESNET18: Mapping[str, Any] = {
    **_PLATEAU,
    "model.name": "resnet18",
    "model.stem": "imagenet",
    "schedule.learning_rate": 0.1,
    "schedule.patience": 1,
}
WYATT_VGG19: Mapping[str, Any] = {
    **_PLATEAU,
    "model.name": "vgg19",
    "schedule.learning_rate": 0.01,
    "schedule.patience": 5,
    "optimizer.weight_decay": 5e-4,
}
# Skagerström, Price, Lindqvist, Classification of ImageNet with convolutional neural networks: pictures stored as
# grayscale are left out, no augmentation. The batch size is not published.
SKAGERSTROM: Mapping[str, Any] = {
    "batch_size": 128,
    "data.keep": "color",
    "data.augment.random_resized_crop": (),
    "data.augment.horizontal_flip": 0.0,
    "loss.label_smoothing": 0.0,
    "schedule.warmup_epochs": 0.0,
    "optimizer.momentum": 0.0,
    "optimizer.nesterov": False,
    "evaluate.splits": ("validation", "test"),
}
# Forms that follow a source which trained on all images, and selected and reported the best epoch on the test split.
SELECTED_ON_TEST: Mapping[str, Any] = {
    "data.splits.train": "train",
    "data.splits.validation": "",
    "data.splits.test": "test",
    "evaluate.splits": ("test",),
    "evaluate.final_splits": ("test",),
    "evaluate.watch": "test_top1",
    "schedule.metric": "test_top1",
}


# Forms for minutes on a CPU, of a GoogLeNet on CIFAR-10: few images, so larger maps; flips and crops alone.
CPU_GOOGLENET: Mapping[str, Any] = {
    "model.stem": "small_pooled",
    "model.initializer": "he_normal",
    "num_epochs": 6,
    "batch_size": 64,
    "data.splits.train": "train[:5000]",
    "data.splits.validation": "train[48000:]",
    "data.splits.test": "test[:2000]",
    "data.augment.rotation": 0.0,
    "data.augment.brightness": 0.0,
    "data.augment.contrast": 0.0,
    "data.augment.saturation": 0.0,
    "schedule.learning_rate": 0.05,
    "optimizer.nesterov": True,
}


def smoke(images: int, **fields: Any) -> dict[str, Any]:
    """Fields of a form that only shows that a study runs: one epoch of so many images, and half as many to evaluate."""
    return {
        "num_epochs": 1,
        "data.splits.train": f"train[:{images}]",
        "data.splits.validation": f"train[-{images // 2}:]",
        "data.splits.test": f"test[:{images // 2}]",
        **fields,
    }
