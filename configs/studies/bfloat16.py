"""What bfloat16 changes: the same recipes in float32 and in bfloat16.

inception-jax study bfloat16 --config.data.archives=DIR
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation, smoke

CONFIGS = {"digits": "googlenet_digits", "mnist": "googlenet_mnist", "cifar10": "googlenet_cifar10_quick"}


def get_study():
    return Study(
        title="float32 and bfloat16",
        source="our own question.",
        text="""
Three short recipes, the last weights on the whole test split. With bfloat16, activations and products have that type;
parameters, statistics, sums and updates are float32. Runs of the same seed have the same initial weights and the same
order of the data.
""",
        config="googlenet_digits",
        variations={
            f"{name}_{dtype}": Variation({"compute_dtype": dtype}, config=config)
            for name, config in CONFIGS.items()
            for dtype in ("float32", "bfloat16")
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="As shipped, minutes a run on two CPU cores."),
            "cpu": Form(variations=("digits_*",), seeds=(0, 1, 2), note="The digits alone, minutes."),
            "smoke": Form(
                smoke(256, **{"data.splits.validation": "test"}),
                variations=("digits_bfloat16",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=1000, epochs=2, seeds=3),
        measures=("final_test_top1", "final_test_loss", "training_minutes"),
        claims=tuple(
            Claim(
                f"bfloat16 changes the accuracy by less than {100 * margin:g} points ({name})",
                "final_test_top1",
                f"{name}_bfloat16",
                f"{name}_float32",
                "same",
                margin=margin,
            )
            for name, margin in (("digits", 0.01), ("mnist", 0.005), ("cifar10", 0.02))
        ),
    )
