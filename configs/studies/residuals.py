"""Study B: residual connections and the size of the third branch's kernels in GoogLeNet, on CIFAR-10.

inception-jax study residuals --form cpu
"""

from inception_jax.studies import (
    CPU_GOOGLENET,
    SELECTED_ON_TEST,
    WYATT,
    WYATT_AUGMENTATION,
    WYATT_GOOGLENET,
    Claim,
    Form,
    Minimum,
    Study,
    Variation,
    smoke,
)

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
    variations["without_heads"] = Variation(
        {"model.aux_heads": False}, published={"highest_test_top1": 0.8531}, note="plain, 3x3, without auxiliary heads"
    )
    return Study(
        title="Residual connections and kernel sizes in GoogLeNet, CIFAR-10",
        source="Wyatt, Deeper networks for image classification, sections 3.2.3 and 3.2.4: the best test error.",
        text="""
The identity is added to Inception modules whose output has their input's shape; with projections, a 1x1 convolution
makes it fit everywhere (the source names that as further work). The network is torchvision's, as in the source: the
ImageNet stem also at 32 pixels, both auxiliary heads but in one row, truncated normal kernels, 2x2 windows in the last
max pool with kernels of either size. The learning rate starts at 0.1 and is multiplied by 0.96 every 8 epochs; batches
of 256, momentum 0.9, flips, rotation, color jitter and random resized crops, whose strengths are not published: ours
are 10 degrees, 0.1 and half of the area.

The source reports the best test error over the epochs, of one run each. Where a validation split is held out, it
selects ours, and the highest test accuracy is given in addition. Runs of the same seed share the order of the data and
the weights of all layers that they have in common, so their differences are compared in pairs.
""",
        config="googlenet_cifar10",
        fields={**WYATT, **WYATT_AUGMENTATION, **WYATT_GOOGLENET, "num_epochs": 160},
        variations=variations,
        forms={
            "full": Form(seeds=(0, 1, 2), note="45,000 training images, 160 epochs, for a GPU."),
            "cores": Form(
                SELECTED_ON_TEST,
                variations=("plain_*", "residual_*", "without_heads"),
                minimum=Minimum(images=49_000, epochs=160),
                note="50,000 training images, 160 epochs, one seed, for two CPU cores in days. As in the source, the "
                "best epoch is chosen on the test split.",
            ),
            "cpu": Form(
                {**CPU_GOOGLENET, "model.aux_heads": False},
                seeds=(0, 1, 2),
                variations=("plain_*", "residual_*"),
                note="5,000 training images, 6 epochs of batches of 64, flips and crops alone, no auxiliary heads.",
            ),
            "smoke": Form(smoke(256, batch_size=64), variations=("residual_3x3",), note="To see that it runs."),
        },
        minimum=Minimum(images=4000, epochs=6, seeds=3),
        measures=(
            "highest_test_top1",
            "epoch_of_highest_test_top1",
            "best_test_top1",
            "final_test_top1",
            "area_test_top1",
            "epochs_to_0.4_test_top1",
            "epochs_to_0.8_test_top1",
            "epochs_to_0.84_test_top1",
            "training_minutes",
            "parameters",
        ),
        curves=("train_loss", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim("residual connections help (3x3)", "best_test_top1", "residual_3x3", "plain_3x3", published=0.0083),
            Claim("residual connections help (5x5)", "best_test_top1", "residual_5x5", "plain_5x5", published=0.0094),
            Claim("residual 3x3 beats plain 5x5", "best_test_top1", "residual_3x3", "plain_5x5", published=0.006),
            *(
                Claim(
                    f"residual networks converge faster ({kernel})",
                    "area_test_top1",
                    f"residual_{kernel}",
                    f"plain_{kernel}",
                )
                for kernel in ("3x3", "5x5")
            ),
            Claim(
                "the gain of 5x5 kernels is small",
                "best_test_top1",
                "plain_5x5",
                "plain_3x3",
                "same",
                margin=0.01,
                published=0.0023,
            ),
            Claim(
                "5x5 with residual connections is the best",
                "best_test_top1",
                "residual_5x5",
                "residual_3x3",
                published=0.0034,
            ),
            Claim(
                "5x5 with residual connections converges last",
                "epoch_of_highest_test_top1",
                "residual_5x5",
                "residual_3x3",
            ),
            Claim(
                "the identity matters more than auxiliary heads",
                "best_test_top1",
                "residual_3x3",
                "plain_3x3",
                than=("plain_3x3", "without_heads"),
                published=0.007,
            ),
        ),
    )
