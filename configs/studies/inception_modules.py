"""Study C: the naive Inception module against the one with reductions: cost and accuracy.

inception-jax study inception_modules --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation


def get_study():
    return Study(
        title="The naive Inception module against the one with 1x1 reductions, CIFAR-10",
        source="Slides on the Inception architecture: a 5x5 convolution from 480 to 48 channels at 14x14 costs "
        "112.9 million multiplications, with a 1x1 reduction to 16 channels before it 5.3 million.",
        text="""
The slides compare costs alone; here both networks are trained, too, by the recipe of the shipped GoogLeNet for
CIFAR-10.
""",
        config="googlenet_cifar10",
        variations={
            # A different network starts from its own defaults, so these repeat the config's options.
            "naive": Variation(
                {
                    "model.name": "googlenet_naive",
                    "model.norm": "batch",
                    "model.stem": "small_pooled",
                    "model.dropout_rate": 0.2,
                }
            ),
            "reduced": Variation(),
        },
        forms={
            "full": Form({"num_epochs": 60}, seeds=(0, 1, 2), note="45,000 images, 60 epochs, for a GPU."),
            "cores": Form(
                {"num_epochs": 30},
                minimum=Minimum(images=44_900, epochs=30),
                note="CIFAR-10's 50,000 training images, 5,000 of which select the weights; 30 of the 60 epochs, one "
                "seed: about 9 hours on two CPU cores, two thirds of which are for the naive network.",
            ),
            "cpu": Form(
                {
                    "num_epochs": 3,
                    "batch_size": 64,
                    "data.splits.train": "train[:4000]",
                    "data.splits.validation": "train[48000:]",
                    "data.splits.test": "test[:2000]",
                },
                seeds=(0, 1),
                note="4,000 images, 3 epochs.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "batch_size": 64,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:128]",
                },
                variations=("reduced",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=3900, epochs=3, seeds=2),
        measures=("best_test_top1", "final_test_top1", "training_minutes", "parameters", "multiply_adds"),
        claims=(
            Claim("reductions cost no accuracy", "best_test_top1", "reduced", "naive", "same", margin=0.01),
            Claim("reductions save time", "training_minutes", "reduced", "naive", "lower"),
        ),
    )
