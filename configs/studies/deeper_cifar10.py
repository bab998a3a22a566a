"""Study B: VGG-19, ResNet-18 and GoogLeNet on CIFAR-10.

inception-jax study deeper_cifar10 --form cpu
"""

from inception_jax.studies import (
    SELECTED_ON_TEST,
    WYATT,
    WYATT_AUGMENTATION,
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
        title="Deeper networks on CIFAR-10",
        source="Wyatt, Deeper networks for image classification, section 3.2.2 and figure 6.",
        text="""
From scratch, batches of 256, momentum 0.9; horizontal flips, rotation, color jitter, random resized crops, whose
strengths are not published: ours are 10 degrees, 0.1 and half of the area. The networks are torchvision's, with
ImageNet's stem also at 32 pixels, which is why ResNet-18 is far from what it can do. The source watched test
performance for its plateau schedules and its best epochs; where a validation split is held out it decides, and the
highest test accuracy is given in addition. GoogLeNet is the better one in the source: 14.56 % test error, 10.73 points
below ResNet-18's.
""",
        config="googlenet_cifar10",
        fields={**WYATT, **WYATT_AUGMENTATION, "num_epochs": 100},
        variations={
            "vgg19": Variation(WYATT_VGG19, note="the source's settles after 70 epochs"),
            "resnet18": Variation(
                WYATT_RESNET18,
                published={"highest_test_top1": 0.7471},
                note="published: 10.73 points below GoogLeNet's; the source's converges in its 9th epoch",
            ),
            "googlenet": Variation(
                WYATT_GOOGLENET,
                published={"highest_test_top1": 0.8544},
                note="the source's converges in its 81st epoch",
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="100 epochs, for a GPU."),
            "cores": Form(
                SELECTED_ON_TEST,
                own={"googlenet": {"num_epochs": 160}, "vgg19": {"num_epochs": 75}},
                shared={"googlenet": "residuals/plain_3x3"},
                minimum=Minimum(images=49_000, epochs=75),
                note="50,000 training images; ResNet-18 for 100 epochs, VGG-19 for 75, GoogLeNet for 160: the same run "
                "as in the study `residuals`. One seed, for two CPU cores in a day. As in the source, the best epoch "
                "is chosen on the test split, which the plateau schedules also watch.",
            ),
            "cpu": Form(
                {
                    "num_epochs": 4,
                    "batch_size": 64,
                    "data.splits.train": "train[:2500]",
                    "data.splits.validation": "train[49000:]",
                    "data.splits.test": "test[:1000]",
                    "model.stem": "small_pooled",
                },
                own={"vgg19": {"model.name": "vgg19_bn", "model.stem": None}},
                variations=("vgg19", "googlenet"),
                note="2,500 images in batches of 64, 4 epochs; GoogLeNet with larger maps, VGG-19 with batch norm.",
            ),
            "smoke": Form(smoke(512), variations=("googlenet",), note="To see that it runs."),
        },
        minimum=Minimum(images=40_000, epochs=60, seeds=2),
        measures=(
            "best_test_error",
            "final_test_error",
            "highest_test_top1",
            "epoch_of_highest_test_top1",
            "change_of_train_top1_after_epoch_9",
            "change_of_test_top1_after_epoch_9",
            "gap_test_top1",
            "training_minutes",
            "parameters",
        ),
        curves=("train_loss", "train_top1", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim(
                "GoogLeNet has a lower error than ResNet-18",
                "best_test_error",
                "googlenet",
                "resnet18",
                "lower",
                published=-0.1073,
            ),
            Claim("ResNet-18 converges before VGG-19", "epoch_of_highest_test_top1", "resnet18", "vgg19", "lower"),
            Claim(
                "ResNet-18's training error continues to fall after its 9th epoch",
                "change_of_train_top1_after_epoch_9",
                "resnet18",
                expected="between",
                limits=(0.02, 1.0),
            ),
            Claim(
                "its test error does not",
                "change_of_test_top1_after_epoch_9",
                "resnet18",
                expected="between",
                limits=(-0.02, 0.02),
            ),
        ),
    )
