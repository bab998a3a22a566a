"""Study B: residual connections and the size of the third branch's kernels in GoogLeNet, on CIFAR-10.

inception-jax study residuals --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

PUBLISHED = {("none", 3): 0.1456, ("none", 5): 0.1433, ("identity", 3): 0.1373, ("identity", 5): 0.1339}
NAMES = {"none": "plain", "identity": "residual", "projection": "projection"}


def get_study():
    published = {key: {"highest_test_top1": round(1 - error, 4)} for key, error in PUBLISHED.items()}
    published["identity", 5]["epoch_of_highest_test_top1"] = 158
    variations = {
        f"{NAMES[residual]}_{side}x{side}": Variation(
            {"model.residual": residual, "model.kernel_5x5": side},
            published=published.get((residual, side), {}),
            note="the source's further work" if residual == "projection" else "",
        )
        for residual in NAMES
        for side in (3, 5)
    }
    return Study(
        title="Residual connections and kernel sizes in GoogLeNet, CIFAR-10",
        source="Wyatt, Deeper networks for image classification, table of GoogLeNet variants: the best test error.",
        text="""
The identity is added to Inception modules whose output has their input's shape; with projections, a 1x1 convolution
makes it fit everywhere (the source names that as further work). The rate starts at 0.1 and is multiplied by 0.96 every
8 epochs; batches of 256, momentum 0.9, flips, rotation, colour jitter and random resized crops, whose strengths are not
published: ours are 10 degrees, 0.1 and half of the area.

The source reports the best test error over the epochs. Where a validation split is held out, it selects ours, and the
highest test accuracy stands beside it.
""",
        config="googlenet_cifar10",
        fields={
            "batch_size": 256,
            "num_epochs": 160,
            "optimizer.nesterov": False,
            "optimizer.weight_decay": 0.0,
            "loss.label_smoothing": 0.0,
            "schedule.warmup_epochs": 0.0,
            "schedule.name": "step",
            "schedule.factor": 0.96,
            "schedule.every_epochs": 8,
            "data.augment.pad_and_crop": 0,
            "data.augment.rotation": 10.0,
            "data.augment.brightness": 0.1,
            "data.augment.contrast": 0.1,
            "data.augment.saturation": 0.1,
            "data.augment.random_resized_crop": (0.5, 1.0),
            "evaluate.splits": ("validation", "test"),
            # The source uses torchvision's network: the ImageNet stem, 2x2 windows in the last max pool, both heads,
            # truncated normal kernels.
            "model.stem": "imagenet",
            "model.pool_4": 2,
            "model.initializer": "paper",
            "model.aux_heads": True,
        },
        variations=variations,
        forms={
            "full": Form(seeds=(0, 1, 2), note="45,000 training images, 160 epochs, for a GPU."),
            "cores": Form(
                {
                    "data.splits.train": "train",
                    "data.splits.validation": "",
                    "data.splits.test": "test",
                    "evaluate.splits": ("test",),
                    "evaluate.final_splits": ("test",),
                    "evaluate.watch": "test_top1",
                },
                variations=("plain_*", "residual_*"),
                note="50,000 training images, 160 epochs, one seed, for two CPU cores in days. As in the source, the "
                "best epoch is chosen on the test split.",
            ),
            "cpu": Form(
                {
                    # Larger maps, since few images are seen; without heads.
                    "model.stem": "small_pooled",
                    "model.initializer": "he_normal",
                    "model.aux_heads": False,
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
                },
                seeds=(0, 1, 2),
                variations=("plain_*", "residual_*"),
                note="5,000 training images, 6 epochs of batches of 64, flips and crops alone.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "batch_size": 64,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:128]",
                },
                variations=("residual_3x3",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=4000, epochs=6, seeds=3),
        measures=(
            "highest_test_top1",
            "epoch_of_highest_test_top1",
            "best_test_top1",
            "final_test_top1",
            "epochs_to_0.4_validation_top1",
            "parameters",
        ),
        curves=("train_loss", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim("residual connections help (3x3)", "best_test_top1", "residual_3x3", "plain_3x3"),
            Claim("residual connections help (5x5)", "best_test_top1", "residual_5x5", "plain_5x5"),
            *(
                Claim(
                    f"residual networks converge faster ({kernel})",
                    "epochs_to_0.4_validation_top1",
                    f"residual_{kernel}",
                    f"plain_{kernel}",
                    "lower",
                )
                for kernel in ("3x3", "5x5")
            ),
            Claim("the gain of 5x5 kernels is small", "best_test_top1", "plain_5x5", "plain_3x3", "same", margin=0.01),
        ),
    )
