"""Study E: six small VGG networks on Tiny ImageNet.

    inception-jax study tiny_vgg --config.data.archives=DIR

If the unlabeled test images are in DIR/tiny-imagenet-200/test/images, their predicted classes are written to
predictions.csv in each run's folder.
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

# Table 3; from tables 1 and 2 and section 4: learning rate, L2, epochs, pixels / 255 or minus the channel means.
NETWORKS = {
    "a": (0.17, 0.37, "sgd", 0.01, 0.0, 20, "unit", "SGD, Glorot"),
    "b": (0.22, 0.45, "adam", 1e-3, 0.0, 20, "unit", "Adam, Glorot, batch norm"),
    "c": (0.06, 0.20, "adam", 1e-3, 0.0, 20, "unit", "Adam, Glorot, dropout"),
    "d": (0.29, 0.55, "adam", 1e-3, 0.0, 20, "unit", "Adam, He, dropout, batch norm"),
    "e": (0.25, 0.50, "adam", 1e-2, 1e-3, 60, "mean", "Adam, He, batch norm, L2 1e-3"),
    "f": (0.24, 0.48, "adam", 1e-3, 5e-3, 100, "mean", "Adam, He, batch norm, L2 5e-3"),
}


def get_study():
    variations = {}
    for letter, (top1, top5, optimizer, rate, decay, epochs, normalization, note) in NETWORKS.items():
        variations[letter] = Variation(
            {
                "model.name": f"tiny_vgg_{letter}", "optimizer.name": optimizer,
                # Keras's L2 adds decay * kernel ** 2 to the loss, whose gradient has a factor of 2.
                "optimizer.weight_decay": 2 * decay,
                "schedule.learning_rate": rate, "num_epochs": epochs, "data.normalization": normalization,
                "schedule.name": "inverse_time" if letter in "ef" else "constant",
            },
            published={"highest_test_top1": top1, "highest_test_top5": top5},
            note=note,
        )  # fmt: skip
    return Study(
        title="Six small VGG networks on Tiny ImageNet",
        source="Skagerström, Price, Lindqvist, Classification of ImageNet with convolutional neural networks (2018), "
        "table 3: accuracy on the published validation split.",
        text="""
200 classes, 64 pixels; pictures stored as grayscale are left out. The published validation split is our test split; our
validation split is a tenth of the training images. The source selected by the former and reports it: what it calls
validation is the highest test accuracy here, and the accuracy that our validation split selected stands beside. Rates
of A to D are not published; ours are Keras's defaults, 0.01 for SGD without momentum and 0.001 for Adam. So is Glorot's
initialisation of A to C, which the source calls "random unit". L2 is on all kernels of E and F; the source's table has
it on some.
""",
        config="googlenet_tiny_imagenet",
        fields={
            "batch_size": 128,
            "data.keep": "color",
            "data.augment.random_resized_crop": (),
            "data.augment.horizontal_flip": 0.0,
            "loss.label_smoothing": 0.0,
            "schedule.warmup_epochs": 0.0,
            "optimizer.momentum": 0.0,
            "optimizer.nesterov": False,
            "evaluate.splits": ("validation", "test"),
        },
        variations=variations,
        forms={
            "full": Form(seeds=(0, 1, 2), note="90,000 images, 20 to 100 epochs, for a GPU."),
            "cpu": Form(
                {"num_epochs": 12, "batch_size": 64, "data.image_size": 32, "data.splits.train": "train[:3000]"},
                seeds=(0, 1),
                note="3,000 images of 32 pixels, of the classes at hand, 12 epochs.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:128]",
                },
                variations=("d",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=2900, epochs=12, seeds=2),
        measures=(
            "highest_test_top1",
            "highest_test_top5",
            "best_test_top1",
            "best_test_top5",
            "final_test_top1",
            "epoch_of_lowest_validation_loss",
        ),
        curves=("train_loss", "validation_loss", "train_top1", "validation_top1", "train_top5", "validation_top5"),
        claims=(
            *(
                Claim(
                    f"{letter.upper()} overfits after 5 to 10 epochs, at which its validation loss is the lowest",
                    "epoch_of_lowest_validation_loss",
                    letter,
                    expected="between",
                    limits=(5, 10),
                )
                for letter in "abcd"
            ),
            Claim("D is better than A", "best_test_top1", "d", "a"),
            Claim("D is better than E", "best_test_top1", "d", "e"),
        ),
        predict="tiny-imagenet-200/test/images",
    )
