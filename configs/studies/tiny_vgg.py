"""Study E: six small VGG networks on Tiny ImageNet.

    inception-jax study tiny_vgg --config.data.archives=DIR

If the unlabeled test images are in DIR/tiny-imagenet-200/test/images, their predicted classes are written to
predictions.csv in each run's folder.
"""

from inception_jax.studies import SELECTED_ON_TEST, SKAGERSTROM, Claim, Form, Minimum, Study, Variation, smoke

# Table 3; from tables 1 and 2 and section 4: optimizer, lr, decay of the lr, L2 and on which layers, epochs.
NETWORKS = {
    "a": (0.17, 0.37, "sgd", 0.01, 0.0, 0.0, (), 20, "SGD, Glorot"),
    "b": (0.22, 0.45, "adam", 1e-3, 0.0, 0.0, (), 20, "Adam, Glorot, batch norm"),
    "c": (0.06, 0.20, "adam", 1e-3, 0.0, 0.0, (), 20, "Adam, Glorot, dropout"),
    "d": (0.29, 0.55, "adam", 1e-3, 0.0, 0.0, (), 20, "Adam, He, dropout, batch norm"),
    "d_regularized": (None, None, "adam", 1e-3, 0.0, 1e-3, (), 20, "between D and E: L2 1e-3, dropout 0.7 (figure 5)"),
    "e": (0.25, 0.50, "adam", 1e-2, 1e-6, 1e-3, ("conv?_3", "fc?"), 60, "Adam, He, batch norm, L2 1e-3"),
    "f": (0.24, 0.48, "adam", 1e-3, 1e-5, 5e-3, ("conv?_3",), 100, "Adam, He, batch norm, L2 5e-3"),
}


def get_study():
    variations = {}
    for name, (top1, top5, optimizer, rate, rate_decay, l2, layers, epochs, note) in NETWORKS.items():
        variations[name] = Variation(
            {
                "model.name": f"tiny_vgg_{name}",
                "optimizer.name": optimizer,
                # Keras's L2 adds l2 * kernel ** 2 to the loss, whose gradient has a factor of 2.
                "optimizer.weight_decay": 2 * l2,
                "optimizer.weight_decay_layers": layers,
                "schedule.name": "inverse_time" if rate_decay else "constant",
                "schedule.learning_rate": rate,
                "schedule.decay_rate": rate_decay or 1e-6,
                "num_epochs": epochs,
                "data.normalization": "mean_255" if l2 else "unit",
            },
            published={"highest_test_top1": top1, "highest_test_top5": top5} if top1 else {},
            note=note,
        )
    return Study(
        title="Six small VGG networks on Tiny ImageNet",
        source="Skagerström, Price, Lindqvist, Classification of ImageNet with convolutional neural networks (2018), "
        "table 3: accuracy on the published validation split.",
        text="""
200 classes, 64 pixels; pictures stored as grayscale are left out. The published validation split is our test split; our
validation split is a tenth of the training images. The source selected by the former and reports it: what it calls
validation is the highest test accuracy here; the accuracy selected by our validation split is given in addition. Rates
of A to D are not published; ours are Keras's defaults, 0.01 for SGD without momentum and 0.001 for Adam. So is Glorot's
initialization of A to C, which the source calls "random unit". E and F, and the experiment before them, have pixels
minus the mean of each channel instead of pixels divided by 255. L2 is on the last convolution of each stage and the
dense layers but the last, as in the source's table 2. The decay of F's learning rate is only said to be higher than E's
1e-6; ours is 1e-5.
""",
        config="googlenet_tiny_imagenet",
        fields=SKAGERSTROM,
        variations=variations,
        forms={
            "full": Form(seeds=(0, 1, 2), note="90,000 images, 20 to 100 epochs, for a GPU."),
            "cores": Form(
                SELECTED_ON_TEST,
                minimum=Minimum(images=97_000, epochs=20),
                note="All 100,000 images but the grayscale ones, 20 to 100 epochs, one seed, for two CPU cores in "
                "days. As in the source, the best epoch is chosen on the published validation split.",
            ),
            "cpu": Form(
                {"num_epochs": 12, "batch_size": 64, "data.image_size": 32, "data.splits.train": "train[:3000]"},
                seeds=(0, 1),
                note="3,000 images of 32 pixels, of the classes at hand, 12 epochs.",
            ),
            "smoke": Form(smoke(256), variations=("d",), note="To see that it runs."),
        },
        minimum=Minimum(images=2900, epochs=12, seeds=2),
        measures=(
            "highest_test_top1",
            "highest_test_top5",
            "best_test_top1",
            "best_test_top5",
            "final_test_top1",
            "epoch_of_lowest_test_loss",
            "gap_test_top1",
        ),
        curves=(
            "train_loss",
            "validation_loss",
            "test_loss",
            "train_top1",
            "validation_top1",
            "test_top1",
            "train_top5",
            "test_top5",
        ),
        claims=(
            *(
                Claim(
                    f"{letter.upper()} overfits after 5 to 10 epochs, at which its test loss is the lowest",
                    "epoch_of_lowest_test_loss",
                    letter,
                    expected="between",
                    limits=(5, 10),
                )
                for letter in "abcd"
            ),
            Claim(
                "E learns steadily for 20 epochs, then overfits",
                "epoch_of_lowest_test_loss",
                "e",
                expected="between",
                limits=(15, 30),
            ),
            Claim("F overfits less than E", "gap_test_top1", "f", "e", "lower"),
            Claim("D is better than A", "best_test_top1", "d", "a"),
            Claim("D is better than E", "best_test_top1", "d", "e"),
        ),
        predict="tiny-imagenet-200/test/images",
    )
