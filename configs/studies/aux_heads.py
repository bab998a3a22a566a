"""Study B: GoogLeNet on CIFAR-10 with and without its auxiliary classifiers.

inception-jax study aux_heads --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation


def get_study():
    return Study(
        title="Auxiliary classifiers in GoogLeNet, CIFAR-10",
        source="Wyatt, Deeper networks for image classification: the best test error with and without them.",
        text="""
Two auxiliary heads behind the modules 4a and 4d, whose losses count 0.3. What they give is shown by the accuracy, by
the heads' own accuracy, and by the norm of the loss's gradient in each layer, at the start and at
the end.
""",
        config="googlenet_cifar10",
        fields={
            "batch_size": 256,
            "num_epochs": 160,
            "optimizer.nesterov": False,
            "optimizer.weight_decay": 0.0,
            "loss.label_smoothing": 0.0,
            "schedule.warmup_epochs": 0.0,
            "schedule.name": "step",
            "schedule.factor": 0.96,
            "schedule.every_epochs": 8,
            "data.augment.pad_and_crop": 0,
            "data.augment.rotation": 10.0,
            "data.augment.brightness": 0.1,
            "data.augment.contrast": 0.1,
            "data.augment.saturation": 0.1,
            "data.augment.random_resized_crop": (0.5, 1.0),
            "model.kernel_5x5": 3,
            "evaluate.splits": ("validation", "test"),
            # The source uses torchvision's network: the ImageNet stem, 2x2 windows in the last max pool, both heads,
            # truncated normal kernels.
            "model.stem": "imagenet",
            "model.pool_4": 2,
            "model.initializer": "paper",
        },
        variations={
            "with_heads": Variation({"model.aux_heads": True}, published={"highest_test_top1": 0.8544}),
            "without": Variation({"model.aux_heads": False}, published={"highest_test_top1": 0.8531}),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="45,000 training images, 160 epochs, for a GPU."),
            "cores": Form(
                {
                    "data.splits.train": "train",
                    "data.splits.validation": "",
                    "data.splits.test": "test",
                    "evaluate.splits": ("test",),
                    "evaluate.final_splits": ("test",),
                    "evaluate.watch": "test_top1",
                },
                note="50,000 training images, 160 epochs, one seed, for two CPU cores in days. As in the source, the "
                "best epoch is chosen on the test split.",
            ),
            "cpu": Form(
                {
                    # Larger maps, since few images are seen.
                    "model.stem": "small_pooled",
                    "model.initializer": "he_normal",
                    "num_epochs": 6,
                    "batch_size": 64,
                    "data.splits.train": "train[:5000]",
                    "data.splits.validation": "train[48000:]",
                    "data.splits.test": "test[:2000]",
                    "data.augment.rotation": 0.0,
                    "data.augment.brightness": 0.0,
                    "data.augment.contrast": 0.0,
                    "data.augment.saturation": 0.0,
                    "schedule.learning_rate": 0.05,
                    "optimizer.nesterov": True,
                },
                seeds=(0, 1, 2),
                note="5,000 training images, 6 epochs of batches of 64, flips and crops alone.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "batch_size": 64,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:128]",
                },
                variations=("with_heads",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=4000, epochs=6, seeds=3),
        measures=(
            "highest_test_top1",
            "best_test_top1",
            "final_test_top1",
            "best_test_aux1_top1",
            "best_test_aux2_top1",
            "training_minutes",
            "parameters",
        ),
        curves=("train_loss", "train_top1", "train_aux1_top1", "train_aux2_top1", "validation_top1"),
        claims=(Claim("the heads hardly matter", "best_test_top1", "with_heads", "without", "same", margin=0.01),),
        gradient_norms=True,
    )
