"""Study C: GoogLeNet on UC Merced's aerial images, from scratch and pretrained.

    inception-jax study uc_merced --config.data.archives=DIR

The pretrained rows start from torchvision's weights, or from a file or run given by --config.init_from=... with --only.
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

SLIDES = {"model.norm": "stem", "data.image_size": 256}
FROM_TINY_IMAGENET = {
    "init_from": "runs/googlenet_tiny_imagenet",
    "data.image_size": 128,
    "model.stem": "small_pooled",
    "model.aux_heads": False,
    "schedule.learning_rate": 0.02,
    "finetune.trunk_rate": 1.0,
    "num_epochs": 30,
}
APART = {"data.name": "uc_merced_apart"}


def get_study():
    return Study(
        title="UC Merced land use, from scratch and pretrained",
        source="Slides on the Inception architecture, results on UC Merced: training and test accuracy.",
        text="""
21 classes of 100 aerial images. The slides' network is GoogLeNet at 256 pixels, with batch norm in place of the two
local response norms (512 statistics; the 8,222,063 parameters that they print follow from no form of the heads that was
tried). Their accuracies of training are 65.78 % from scratch and 88 % pretrained; how they trained is not published:
ours is the recipe of googlenet_uc_merced. Beside it, GoogLeNet with batch norm after every convolution, the recipe
googlenet_uc_merced_best, and networks that start from ImageNet's weights as torchvision publishes them, or from a
GoogLeNet that was trained on Tiny ImageNet in runs/googlenet_tiny_imagenet.

Which pictures the slides tested is not said. The pictures are tiles of larger photographs, and those with close numbers
are often of the same place. In our split, every fifth by number, as in random ones, every test picture has such
neighbors in the training split. The rows that end in "apart" have as many pictures in each split, but those to be
trained on, to select the weights and to be tested are one after the other in the order of the numbers of each class:
00 to 71, 72 to 79, 80 to 99. The difference between two such rows is what it gives to have seen the places.
""",
        config="googlenet_uc_merced",
        variations={
            "slides": Variation(
                SLIDES,
                published={"highest_train_top1": 0.6578, "best_test_top1": 0.4505},
                note="the slides' network",
            ),
            "slides_apart": Variation({**SLIDES, **APART}, note="the slides' network, tested on other places"),
            "from_scratch": Variation(note="batch norm after every convolution"),
            "best": Variation(config="googlenet_uc_merced_best"),
            "best_apart": Variation(APART, config="googlenet_uc_merced_best", note="tested on other places"),
            "pretrained": Variation(
                {
                    "init_from": "torchvision:googlenet",
                    "model.kernel_5x5": 3,
                    "model.aux_heads": False,
                    "schedule.learning_rate": 0.01,
                    "finetune.trunk_rate": 0.3,
                    "num_epochs": 20,
                },
                published={"highest_train_top1": 0.88, "best_test_top1": 0.70},
            ),
            "from_tiny_imagenet": Variation(FROM_TINY_IMAGENET, note="128 pixels"),
            "from_tiny_imagenet_apart": Variation(
                {**FROM_TINY_IMAGENET, **APART}, note="128 pixels, tested on other places"
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="224 pixels, 60 epochs, for a GPU."),
            "cores": Form(
                variations=("slides*", "best*", "from_tiny_imagenet*"),
                minimum=Minimum(images=1500, epochs=30),
                note="256 pixels and 60 epochs, 224 and 200, 128 and 30; one seed, for two CPU cores in hours. The "
                "last two start from what inception-jax train --config=googlenet_tiny_imagenet leaves in its folder.",
            ),
            "cpu": Form(
                {"data.image_size": 64, "num_epochs": 15, "model.stem": "small_pooled", "model.aux_heads": False},
                variations=("from_scratch",),
                note="64 pixels, 15 epochs.",
            ),
            "smoke": Form(
                {
                    "data.image_size": 32,
                    "num_epochs": 1,
                    "model.stem": "small_pooled",
                    "model.aux_heads": False,
                    "data.splits.train": "train[:10%]",
                },
                variations=("from_scratch",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=1000, epochs=15, seeds=1),
        measures=("best_test_top1", "final_test_top1", "highest_train_top1", "training_minutes"),
        claims=(
            Claim("the best recipe is better than the slides' network", "best_test_top1", "best", "slides"),
            Claim("it is also better in other places", "best_test_top1", "best_apart", "slides_apart"),
            *(
                Claim(f"neighbors flatter the row {name}", "best_test_top1", name, f"{name}_apart")
                for name in ("slides", "best", "from_tiny_imagenet")
            ),
            Claim("pretrained is better than from scratch", "best_test_top1", "pretrained", "from_scratch"),
        ),
    )
