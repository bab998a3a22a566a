"""Study B: the patience of VGG-19's plateau schedule before it divides the learning rate by 10.

inception-jax study patience --form cpu
"""

from inception_jax.studies import (
    SELECTED_ON_TEST,
    WYATT,
    WYATT_AUGMENTATION,
    WYATT_VGG19,
    Claim,
    Form,
    Minimum,
    Study,
    Variation,
    smoke,
)

# Best test error, the epoch at which it was achieved, and the learning rate at that epoch.
PUBLISHED = {
    0: (0.1405, 26, 1e-8), 1: (0.0958, 44, 1e-7), 5: (0.0673, 88, 1e-5), 10: (0.0596, 97, 1e-3), 15: (0.0612, 99, 1e-3)
}  # fmt: skip


def get_study():
    return Study(
        title="Patience of the plateau schedule, VGG-19 on CIFAR-10",
        source="Wyatt, Deeper networks for image classification, table of patience values.",
        text="""
The learning rate starts at 0.01 and is divided by 10 after as many evaluations without improvement as the patience
says. The source does not name the data set, nor the augmentation; ours are CIFAR-10 and those of its study of deeper
networks, with the same strengths. Its VGG-19 is torchvision's, without batch norm. It reports the best test error, with
test performance watched; where a validation split is held out, the schedule watches that, and the highest test accuracy
is given in addition.
""",
        config="googlenet_cifar10",
        fields={**WYATT, **WYATT_AUGMENTATION, **WYATT_VGG19, "num_epochs": 100},
        variations={
            f"patience_{patience}": Variation(
                {"schedule.patience": patience},
                published={
                    "highest_test_top1": round(1 - error, 4),
                    "epoch_of_highest_test_top1": epoch,
                    "learning_rate_at_highest_test_top1": rate,
                },
            )
            for patience, (error, epoch, rate) in PUBLISHED.items()
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="100 epochs, for a GPU."),
            "cores": Form(
                {**SELECTED_ON_TEST, "model.name": "vgg11", "model.classifier": "mean"},
                minimum=Minimum(images=49_000, epochs=100),
                note="50,000 training images, 100 epochs, one seed, VGG-11 without hidden dense layers, for two CPU "
                "cores in a day. As in the source, the schedule watches the test split.",
            ),
            "cpu": Form(
                {
                    # The dense layers of VGG-19 alone have 120 million parameters to update.
                    "model.name": "vgg11_bn",
                    "model.classifier": "mean",
                    "num_epochs": 20,
                    "batch_size": 64,
                    "data.splits.train": "train[:1000]",
                    "data.splits.validation": "train[49500:]",
                    "data.splits.test": "test[:500]",
                },
                variations=("patience_0", "patience_1", "patience_5"),
                note="VGG-11 with batch norm, without hidden dense layers, 1,000 images in batches of 64, 20 epochs.",
            ),
            "smoke": Form(smoke(512), variations=("patience_1",), note="To see that it runs."),
        },
        minimum=Minimum(images=40_000, epochs=60, seeds=2),
        measures=(
            "highest_test_top1",
            "epoch_of_highest_test_top1",
            "learning_rate_at_highest_test_top1",
            "best_test_top1",
            "final_test_top1",
        ),
        curves=("validation_top1", "test_top1", "learning_rate"),
        claims=(
            Claim("a patience of 10 is better than one of 1", "best_test_top1", "patience_10", "patience_1"),
            Claim("15 is no better than 10", "best_test_top1", "patience_15", "patience_10", "same", margin=0.005),
            Claim(
                "a larger patience keeps the learning rate higher until the best epoch",
                "learning_rate_at_highest_test_top1",
                "patience_10",
                "patience_1",
            ),
        ),
    )
