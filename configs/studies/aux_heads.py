"""Study B: GoogLeNet on CIFAR-10 with and without its auxiliary classifiers.

inception-jax study aux_heads --form cpu
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


def get_study():
    return Study(
        title="Auxiliary classifiers in GoogLeNet, CIFAR-10",
        source="Wyatt, Deeper networks for image classification, section 3.2.4: the best test error with and without.",
        text="""
Two auxiliary heads after the modules 4a and 4d, whose losses have the weight 0.3. Their effect is measured by the
accuracy, by the heads' own accuracy, and by the norm of the loss's gradient in each layer, at the start and at the end.
Network and recipe are those of the study `residuals`; in the forms `full` and `cores` so are the runs.
""",
        config="googlenet_cifar10",
        fields={**WYATT, **WYATT_AUGMENTATION, **WYATT_GOOGLENET, "num_epochs": 160},
        variations={
            "with_heads": Variation(published={"highest_test_top1": 0.8544}),
            "without": Variation({"model.aux_heads": False}, published={"highest_test_top1": 0.8531}),
        },
        forms={
            "full": Form(
                seeds=(0, 1, 2),
                shared={"with_heads": "residuals/plain_3x3", "without": "residuals/without_heads"},
                note="45,000 training images, 160 epochs, for a GPU.",
            ),
            "cores": Form(
                SELECTED_ON_TEST,
                shared={"with_heads": "residuals/plain_3x3", "without": "residuals/without_heads"},
                minimum=Minimum(images=49_000, epochs=160),
                note="50,000 training images, 160 epochs, one seed, for two CPU cores in a day. As in the source, the "
                "best epoch is chosen on the test split.",
            ),
            "cpu": Form(
                CPU_GOOGLENET,
                seeds=(0, 1, 2),
                note="5,000 training images, 6 epochs of batches of 64, flips and crops alone.",
            ),
            "smoke": Form(smoke(256, batch_size=64), variations=("with_heads",), note="To see that it runs."),
        },
        minimum=Minimum(images=4000, epochs=6, seeds=3),
        measures=(
            "highest_test_top1",
            "best_test_top1",
            "final_test_top1",
            "area_test_top1",
            "best_test_aux1_top1",
            "best_test_aux2_top1",
            "training_minutes",
            "parameters",
        ),
        curves=("train_loss", "train_top1", "train_aux1_top1", "train_aux2_top1", "validation_top1", "test_top1"),
        claims=(
            Claim(
                "the heads hardly matter",
                "best_test_top1",
                "with_heads",
                "without",
                "same",
                margin=0.01,
                published=0.0013,
            ),
            Claim(
                "convergence is the same without them", "area_test_top1", "with_heads", "without", "same", margin=0.01
            ),
        ),
        gradient_norms=True,
    )
