"""Study E's future work: grayscale and color pictures together, in three arms, on Tiny ImageNet.

inception-jax study grayscale --config.data.archives=DIR
"""

from inception_jax.studies import Claim, Form, Minimum, Pair, Study, Variation


def get_study():
    return Study(
        title="Grayscale and color pictures together, Tiny ImageNet",
        source="Skagerström, Price, Lindqvist (2018), section 5.1: the wish, without numbers.",
        text="""
About 2 % of the pictures are stored as grayscale. Arm 1 converts them to color, three equal channels; arm 2 converts
all to one channel; arm 3 is a pair: one network that was trained on color pictures, and arm 2's, which is asked for
those stored without colors. The first four columns are of all test pictures, whichever a network was trained on.
""",
        config="googlenet_tiny_imagenet",
        fields={
            "model.name": "tiny_vgg_f",
            "optimizer.name": "adam",
            "optimizer.weight_decay": 1e-4,
            "optimizer.weight_decay_mode": "coupled",
            "schedule.learning_rate": 1e-3,
        },
        variations={
            "converted": Variation(note="arm 1"),
            "one_channel": Variation({"data.channels": 1}, note="arm 2, and for arm 3"),
            "color_only": Variation({"data.keep": "color"}, note="for arm 3"),
        },
        pairs={"pair": Pair("color_only", "one_channel", note="arm 3: a network for each kind")},
        forms={
            "full": Form({"num_epochs": 40}, seeds=(0, 1, 2), note="100,000 images, 40 epochs, for a GPU."),
            "cores": Form(
                {"num_epochs": 20},
                minimum=Minimum(images=88_000, epochs=20),
                note="All 100,000 training images, a tenth of which select the weights, 64 pixels, half of the 40 "
                "epochs, one seed: half a day to a day on two CPU cores. Of the 10,000 test images, some 180 are "
                "grayscale.",
            ),
            "cpu": Form(
                {"num_epochs": 8, "batch_size": 64, "data.image_size": 32},
                seeds=(0, 1),
                note="Images of 32 pixels, of the classes at hand, 8 epochs.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:256]",
                },
                variations=("color_only", "one_channel"),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=5000, epochs=8, seeds=2),
        measures=("top1", "top5", "grayscale.top1", "color.top1", "best_test_top1", "final_test_top1"),
        claims=(
            Claim("one channel is as good as three", "top1", "one_channel", "converted", "same", 0.01),
            Claim("a network for each kind is better than one for both", "top1", "pair", "converted"),
            Claim("it is better at grayscale pictures", "grayscale.top1", "pair", "converted"),
        ),
    )
