"""Study B: VGG-19, ResNet-18 and GoogLeNet on MNIST.

inception-jax study deeper_mnist --form cpu
"""

from inception_jax.studies import (
    SELECTED_ON_TEST,
    WYATT,
    WYATT_GOOGLENET,
    WYATT_RESNET18,
    WYATT_VGG19,
    Claim,
    Form,
    Minimum,
    Study,
    Variation,
    smoke,
)


def get_study():
    return Study(
        title="Deeper networks on MNIST",
        source="Wyatt, Deeper networks for image classification, tables of section 2.2 and section 3.2.1.",
        text="""
From scratch, batches of 256, momentum 0.9, no augmentation. Networks are torchvision's, at 32 pixels. The source
watched test performance for its plateau schedules; where a validation split is held out, they watch that, and test data
decides nothing.
""",
        config="googlenet_mnist",
        fields={**WYATT, "num_epochs": 20, "data.image_size": 32},
        variations={
            "vgg19": Variation(WYATT_VGG19),
            "resnet18": Variation(WYATT_RESNET18, published={"test_top1_at_epoch_1": 0.9818}),
            "googlenet": Variation(WYATT_GOOGLENET),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="20 epochs, for a GPU."),
            "cores": Form(
                SELECTED_ON_TEST,
                minimum=Minimum(images=59_000, epochs=20),
                note="60,000 training images, 20 epochs, one seed, for two CPU cores in hours. As in the source, the "
                "best epoch is chosen on the test split, which the plateau schedules also watch.",
            ),
            "cpu": Form(
                {
                    "num_epochs": 3,
                    "data.splits.train": "train[:10000]",
                    "data.splits.validation": "train[58000:]",
                    "data.splits.test": "test[:2000]",
                },
                own={"vgg19": {"model.name": "vgg19_bn"}},
                seeds=(0, 1),
                note="10,000 images, 3 epochs; VGG-19 with batch norm.",
            ),
            "smoke": Form(smoke(512), variations=("resnet18",), note="To see that it runs."),
        },
        minimum=Minimum(images=9000, epochs=3, seeds=2),
        measures=(
            "test_top1_at_epoch_1",
            "best_test_error",
            "final_test_error",
            "area_test_top1",
            "epoch_of_highest_test_top1",
            "training_minutes",
        ),
        curves=("train_loss", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim("ResNet-18 converges faster than GoogLeNet", "area_test_top1", "resnet18", "googlenet"),
            Claim("ResNet-18 converges faster than VGG-19", "area_test_top1", "resnet18", "vgg19"),
            Claim(
                "ResNet-18 and GoogLeNet end alike", "best_test_error", "resnet18", "googlenet", "same", margin=0.003
            ),
        ),
    )
