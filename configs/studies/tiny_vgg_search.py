"""Study E's future work: a search for the parameters of network F on Tiny ImageNet, from coarse to fine.

inception-jax study tiny_vgg_search --config.data.archives=DIR
"""

from inception_jax.studies import SKAGERSTROM, Form, Minimum, Range, Search, Study, Variation, smoke


def get_study():
    return Study(
        title="Learning rate, L2 and dropout of network F, from coarse to fine, Tiny ImageNet",
        source="Skagerström, Price, Lindqvist, Classification of ImageNet with convolutional neural networks (2018), "
        "section 5.2: the wish, without numbers; of F, table 3: accuracy on the published validation split.",
        text="""
The source changed learning rate, L2 and dropout by hand, and wished to search for what balances learning and
regularization: broadly at first, then more finely. Here twelve combinations are drawn from the whole ranges, and six
from ranges a quarter as wide (of rate and L2, on a logarithmic scale) around the one that is best on the validation
split, a tenth of the training images. The ranges contain what the source tried: learning rates of 0.001 and 0.01, L2 of
0.001 and 0.005, dropout of 0, 0.3 and 0.7. Weight decay is twice the source's L2, and is on the last convolution of
each stage, as F's; dropout is before the classifier, where F has none. The row f has the source's settings. All else is
F's of the study `tiny_vgg`.

No claim is tested, as the best of many draws is not known beforehand. Its validation accuracy selected it; its test
accuracy did not, so that it can be compared with f's. If runs are short, the search prefers settings that learn fast.
""",
        config="googlenet_tiny_imagenet",
        fields={
            **SKAGERSTROM,
            "model.name": "tiny_vgg_f",
            "optimizer.name": "adam",
            "optimizer.weight_decay_layers": ("conv?_3",),
            "schedule.name": "inverse_time",
            "schedule.decay_rate": 1e-5,
            "data.normalization": "mean_255",
            "num_epochs": 100,
        },
        variations={
            "f": Variation(
                {"schedule.learning_rate": 1e-3, "optimizer.weight_decay": 1e-2, "model.dropout_rate": 0.0},
                published={"highest_test_top1": 0.24, "highest_test_top5": 0.48},
                note="the source's settings",
            ),
        },
        search=Search(
            {
                "schedule.learning_rate": Range(1e-4, 1e-2, log=True),
                "optimizer.weight_decay": Range(2e-4, 5e-2, log=True),
                "model.dropout_rate": Range(0.0, 0.7),
            },
            draws=12,
            finer=6,
        ),
        forms={
            "full": Form(seeds=(0, 1), note="90,000 images but the grayscale ones, 100 epochs, for a GPU."),
            "cores": Form(
                {"num_epochs": 5, "data.splits.train": "train[:20000]"},
                minimum=Minimum(images=19_000, epochs=5),
                note="20,000 images of 64 pixels, a fifth of them, 5 of the 100 epochs, one seed: 4 to 8 hours on "
                "two CPU cores.",
            ),
            "cpu": Form(
                {
                    "num_epochs": 6,
                    "batch_size": 64,
                    "data.image_size": 32,
                    "data.splits.train": "train[:3000]",
                    "data.splits.validation": "train[-1000:]",
                    "data.splits.test": "test[:1000]",
                },
                note="3,000 images of 32 pixels, of the classes at hand, 6 epochs.",
            ),
            "smoke": Form(smoke(256), variations=("f", "draw000"), note="To see that it runs."),
        },
        minimum=Minimum(images=2800, epochs=6),
        measures=(
            "best_validation_top1",
            "best_test_top1",
            "best_test_top5",
            "highest_test_top1",
            "highest_test_top5",
            "epoch_of_lowest_validation_loss",
            "gap_validation_top1",
        ),
        curves=("train_loss", "validation_loss", "train_top1", "validation_top1"),
    )
