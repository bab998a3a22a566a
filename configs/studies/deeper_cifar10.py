"""Study B: VGG-19, ResNet-18 and GoogLeNet on CIFAR-10.

inception-jax study deeper_cifar10 --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

AUGMENT = {
    "data.augment.pad_and_crop": 0, "data.augment.horizontal_flip": 0.5, "data.augment.rotation": 10.0,
    "data.augment.brightness": 0.1, "data.augment.contrast": 0.1, "data.augment.saturation": 0.1,
    "data.augment.random_resized_crop": (0.5, 1.0),
}  # fmt: skip


def get_study():
    plateau = {"schedule.name": "plateau", "schedule.metric": "validation_top1", "schedule.mode": "max"}
    step = {"schedule.name": "step", "schedule.factor": 0.96, "schedule.every_epochs": 8}
    return Study(
        title="Deeper networks on CIFAR-10",
        source="Wyatt, Deeper networks for image classification, section 3.2 and figure 6.",
        text="""
From scratch, batches of 256, momentum 0.9; horizontal flips, rotation, colour jitter, random resized crops, whose
strengths are not published: ours are 10 degrees, 0.1 and half of the area. The source watched test performance for its
plateau schedules and its best epochs; here the validation split decides, and the highest test accuracy stands beside.
Its GoogLeNet is the better one: 14.56 % test error, 10.73 points below its ResNet-18's, of which it says no more.
""",
        config="googlenet_cifar10",
        fields={
            **AUGMENT,
            "batch_size": 256,
            "num_epochs": 100,
            "optimizer.nesterov": False,
            "loss.label_smoothing": 0.0,
            "optimizer.weight_decay": 0.0,
            "schedule.warmup_epochs": 0.0,
            "evaluate.splits": ("validation", "test"),
        },
        variations={
            "vgg19": Variation(
                {
                    **plateau,
                    "model.name": "vgg19_bn",
                    "schedule.learning_rate": 0.01,
                    "schedule.patience": 5,
                    "optimizer.weight_decay": 5e-4,
                },
                note="with batch norm; the source's settles after 70 epochs",
            ),
            "resnet18": Variation(
                {
                    **plateau,
                    "model.name": "resnet18",
                    "model.stem": "small",
                    "schedule.learning_rate": 0.1,
                    "schedule.patience": 1,
                },
                published={"highest_test_top1": 0.7471},
                note="published: about, 10.73 points below GoogLeNet's; the source's converges in its 9th epoch",
            ),
            "googlenet": Variation(
                {**step, "model.kernel_5x5": 3, "schedule.learning_rate": 0.1},
                published={"highest_test_top1": 0.8544},
                note="the source's converges in its 81st epoch",
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="100 epochs, for a GPU."),
            "cpu": Form(
                {
                    "num_epochs": 4,
                    "batch_size": 64,
                    "data.splits.train": "train[:2500]",
                    "data.splits.validation": "train[49000:]",
                    "data.splits.test": "test[:1000]",
                },
                variations=("vgg19", "googlenet"),
                note="2,500 images in batches of 64, 4 epochs; ResNet-18 at full resolution is left to a GPU.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "data.splits.train": "train[:512]",
                    "data.splits.validation": "train[-256:]",
                    "data.splits.test": "test[:256]",
                },
                variations=("googlenet",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=40_000, epochs=60, seeds=2),
        measures=(
            "best_test_error",
            "final_test_error",
            "highest_test_top1",
            "epoch_of_highest_validation_top1",
            "training_minutes",
            "parameters",
        ),
        curves=("train_loss", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim("GoogLeNet has a lower error than ResNet-18", "best_test_error", "googlenet", "resnet18", "lower"),
            Claim(
                "ResNet-18 converges before VGG-19", "epoch_of_highest_validation_top1", "resnet18", "vgg19", "lower"
            ),
        ),
    )
