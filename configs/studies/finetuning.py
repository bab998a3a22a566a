"""Pretraining on CIFAR-10 against training from scratch, on UC Merced's aerial images.

    inception-jax train --config=googlenet_cifar10
    inception-jax study finetuning --config.data.archives=DIR

The first command trains the network that the fine-tuned rows start from, in runs/googlenet_cifar10.
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

NETWORK = {"model.name": "googlenet", "model.norm": "batch", "model.stem": "small_pooled", "model.aux_heads": False}


def get_study():
    return Study(
        title="UC Merced land use, fine-tuned from CIFAR-10 and from scratch",
        source="our own question",
        text="""
The fine-tuned rows are what the config finetune_folder makes of a GoogLeNet that was trained on CIFAR-10's 32 pixel
images, with the same rate for all layers; from scratch, the same network has the same images, augmentation and number
of epochs, and a rate of its own. In the residual row the pretrained network gets shortcuts around those Inception
modules whose output has their input's shape, which have no parameters; Wyatt's study of deeper networks names residual
modules in fine-tuning as further work.
""",
        config="finetune_folder",
        fields={
            "data.name": "uc_merced",
            "data.image_size": 64,
            "data.fit": "squash",
            "data.augment.crop_originals": False,
        },
        variations={
            # A trunk pretrained on small pictures of other objects has much to learn: it has the classifier's lr.
            "finetuned": Variation(
                {
                    "init_from": "runs/googlenet_cifar10",
                    "finetune.trunk_rate": 1.0,
                    "schedule.learning_rate": 0.03,
                }
            ),
            "finetuned_residual": Variation(
                {
                    "init_from": "runs/googlenet_cifar10",
                    "model.residual": "identity",
                    "finetune.trunk_rate": 1.0,
                    "schedule.learning_rate": 0.03,
                }
            ),
            "from_scratch": Variation({**NETWORK, "schedule.learning_rate": 0.05}),
        },
        forms={
            "full": Form({"num_epochs": 30}, seeds=(0, 1, 2), note="64 pixels, 30 epochs."),
            "cores": Form(
                {"num_epochs": 30},
                seeds=(0, 1, 2),
                minimum=Minimum(images=1500, epochs=30, seeds=3),
                note="As full, 64 pixels, 30 epochs, three seeds.",
            ),
            "cpu": Form({"num_epochs": 10, "data.image_size": 48}, seeds=(0, 1, 2), note="48 pixels, 10 epochs."),
            "smoke": Form(
                {"num_epochs": 1, "data.image_size": 32, "data.splits.train": "train[:10%]"},
                variations=("from_scratch",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=1000, epochs=10, seeds=3),
        measures=("best_test_top1", "final_test_top1", "highest_validation_top1", "training_minutes"),
        claims=(
            Claim("fine-tuning is better", "best_test_top1", "finetuned", "from_scratch"),
            Claim("residual modules help in fine-tuning", "best_test_top1", "finetuned_residual", "finetuned"),
        ),
    )
