"""Study C: Inception v1 to v4 side by side on CIFAR-10.

inception-jax study inception_versions --form cpu
"""

from inception_jax.studies import SELECTED_ON_TEST, Claim, Form, Minimum, Study, Variation


def get_study():
    return Study(
        title="Inception v1 to v4, CIFAR-10",
        source="what others report for CIFAR-10 from scratch: GoogLeNet 94.94 %, Inception v3 93.74 %.",
        text="""
One recipe for all versions: SGD with Nesterov momentum, cosine schedule, crops and flips, label smoothing 0.1. Each
network has its stem for small images.
""",
        config="googlenet_cifar10",
        fields={"model.dropout_rate": 0.2, "evaluate.splits": ("validation", "test")},
        variations={
            "v1": Variation({"model.stem": "small"}, published={"highest_test_top1": 0.9494}),
            "bn": Variation({"model.name": "bn_inception", "model.stem": "small"}),
            "v2": Variation({"model.name": "inception_v2", "model.stem": "small"}),
            "v3": Variation(
                {"model.name": "inception_v3", "model.stem": "small"}, published={"highest_test_top1": 0.9374}
            ),
            "v4": Variation({"model.name": "inception_v4", "model.stem": "small"}),
        },
        forms={
            "full": Form({"num_epochs": 100}, seeds=(0, 1, 2), note="45,000 images, 100 epochs, for a GPU."),
            "cores": Form(
                {**SELECTED_ON_TEST, "num_epochs": 10, "data.image_size": 16},
                minimum=Minimum(images=49_900, epochs=10),
                note="All 50,000 training images, made 16 pixels small, 10 of the 100 epochs, one seed: about 30 hours "
                "on two CPU cores without evaluation, almost half of which are for v4; at 32 pixels it would be four "
                "times as many. As others do, the best epoch is chosen on the test split.",
            ),
            "cpu": Form(
                {
                    "num_epochs": 2,
                    "batch_size": 32,
                    "data.image_size": 12,
                    "data.splits.train": "train[:1000]",
                    "data.splits.validation": "train[-500:]",
                    "data.splits.test": "test[:500]",
                },
                note="1,000 images made 12 pixels small, 2 epochs: what they cost; what they are worth needs a GPU.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "batch_size": 32,
                    "data.splits.train": "train[:128]",
                    "model.stem": "small_pooled",
                    "data.splits.validation": "train[-64:]",
                    "data.splits.test": "test[:64]",
                },
                variations=("v1",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=40_000, epochs=60, seeds=1),
        measures=(
            "highest_test_top1",
            "best_test_top1",
            "final_test_top1",
            "training_minutes",
            "parameters",
            "multiply_adds",
        ),
        claims=(Claim("v3 is better than v1", "best_test_top1", "v3", "v1"),),
    )
