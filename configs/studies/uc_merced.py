"""Study C: GoogLeNet on UC Merced's aerial images, from scratch and pretrained.

    inception-jax study uc_merced --config.data.archives=DIR

The pretrained rows start from torchvision's weights, or from a file or run given by --config.init_from=... with --only.
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation


def get_study():
    return Study(
        title="UC Merced land use, from scratch and pretrained",
        source="Slides on the Inception architecture, results on UC Merced: training and test accuracy.",
        text="""
21 classes of 100 aerial images. The slides' network is GoogLeNet at 256 pixels with batch norm in its stem; their
accuracies of training are 65.78 % from scratch and 88 % pretrained. Ours is GoogLeNet with batch norm after every
convolution; pretrained it starts from ImageNet's weights as torchvision publishes them.
""",
        config="googlenet_uc_merced",
        variations={
            "from_scratch": Variation(published={"highest_train_top1": 0.6578, "best_test_top1": 0.4505}),
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
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="224 pixels, 60 epochs, for a GPU."),
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
        claims=(Claim("pretrained is better than from scratch", "best_test_top1", "pretrained", "from_scratch"),),
    )
