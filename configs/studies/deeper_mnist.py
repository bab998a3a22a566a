"""Study B: VGG-19, ResNet-18 and GoogLeNet on MNIST.

inception-jax study deeper_mnist --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation


def get_study():
    plateau = {"schedule.name": "plateau", "schedule.metric": "validation_top1", "schedule.mode": "max"}
    return Study(
        title="Deeper networks on MNIST",
        source="Wyatt, Deeper networks for image classification, table of MNIST settings and section 3.1.",
        text="""
From scratch, batches of 256, momentum 0.9, no augmentation. The source watched test performance for its plateau
schedules; here they watch the validation split, and test data decides nothing. Networks as torchvision has them, at 32
pixels.
""",
        config="googlenet_mnist",
        fields={
            "batch_size": 256,
            "num_epochs": 20,
            "data.image_size": 32,
            "optimizer.nesterov": False,
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
                note="with batch norm",
            ),
            "resnet18": Variation(
                {**plateau, "model.name": "resnet18", "schedule.learning_rate": 0.1, "schedule.patience": 1},
                published={"test_top1_at_epoch_1": 0.9818},
            ),
            "googlenet": Variation(
                {
                    "model.kernel_5x5": 3,
                    "schedule.name": "step",
                    "schedule.learning_rate": 0.1,
                    "schedule.factor": 0.96,
                    "schedule.every_epochs": 8,
                }
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="20 epochs, for a GPU."),
            "cpu": Form(
                {
                    "num_epochs": 3,
                    "data.splits.train": "train[:10000]",
                    "data.splits.validation": "train[58000:]",
                    "data.splits.test": "test[:2000]",
                },
                seeds=(0, 1),
                note="10,000 images, 3 epochs.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "data.splits.train": "train[:512]",
                    "data.splits.validation": "train[-256:]",
                    "data.splits.test": "test[:256]",
                },
                variations=("resnet18",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=9000, epochs=3, seeds=2),
        measures=(
            "test_top1_at_epoch_1",
            "best_test_error",
            "final_test_error",
            "epoch_of_highest_validation_top1",
            "training_minutes",
        ),
        curves=("train_loss", "validation_loss", "validation_top1", "test_top1"),
        claims=(
            Claim(
                "ResNet-18 converges before VGG-19", "epoch_of_highest_validation_top1", "resnet18", "vgg19", "lower"
            ),
        ),
    )
