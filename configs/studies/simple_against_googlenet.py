"""Study A: a plain sequential network against GoogLeNet on ten ImageNet synsets, and both on CIFAR-10's test images.

    inception-jax study simple_against_googlenet --config.data.folder=DIR

DIR has a folder for each synset, or is a full ILSVRC2012 tree. The cross-evaluation also needs CIFAR-10.
"""

from inception_jax.studies import Claim, CrossEvaluation, Form, Minimum, Study, Variation, smoke

SMALL_IMAGES = {"model.stem": "small", "model.stage_convolutions": (2, 2, 2, 2)}


def get_study():
    return Study(
        title="A plain network against GoogLeNet on ten ImageNet synsets",
        source="Mahmud, replication of GoogLeNet on an ImageNet subset (2024), results section.",
        text="""
Ten synsets that match CIFAR-10's classes; 100 pictures of each class are held out as the test split, the rest is split
80/20 into training and validation. 30 epochs of batches of 16 at a learning rate of 1e-4; random crop, flip and zoom.
The optimizer is not published, nor are the strengths of crop and zoom: ours are Adam, 16 pixels and 20 %. The published
figure of the plain network is lost; ours has its 32 to 256 filters and takes 0.59 of GoogLeNet's multiply-adds, as its
training took 42 of GoogLeNet's 71 minutes on a CPU. GoogLeNet is the paper's, with local response norms and without
auxiliary heads. On a GPU, training took 35 and 37 minutes; our minutes are of the hardware that the report names.
""",
        config="googlenet_imagenet_subset",
        variations={
            "simple": Variation(
                {"model.name": "simple_cnn", "model.stem": "imagenet", "model.stage_convolutions": (2, 2, 3, 3)},
                published={
                    "highest_validation_top1": 0.572,
                    "epoch_of_highest_validation_top1": 23,
                    "best_test_top1": 0.581,
                    "cifar10_top1": 0.214,
                },
            ),
            "googlenet": Variation(
                {"model.norm": "lrn", "model.aux_heads": False},
                published={
                    "highest_validation_top1": 0.603,
                    "epoch_of_highest_validation_top1": 14,
                    "best_test_top1": 0.662,
                    "cifar10_top1": 0.226,
                },
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="14,738 pictures of 224 pixels, for a GPU."),
            "cores": Form(
                {"data.classes": ("all",)},
                minimum=Minimum(images=9000, epochs=30),
                note="Whatever ten synsets are there, such as the 13,394 pictures of Imagenette, whose classes are "
                "other ones than the source's; 224 pixels, 30 epochs, one seed, for two CPU cores in hours.",
            ),
            "cpu": Form(
                {
                    "data.classes": ("all",),
                    "data.image_size": 64,
                    "num_epochs": 8,
                    "data.augment.pad_and_crop": 4,
                    "schedule.learning_rate": 5e-4,
                    "model.norm": "batch",
                },
                own={"simple": SMALL_IMAGES},
                seeds=(0, 1, 2),
                note="Whatever synsets are there, at 64 pixels, with batch norm and a higher rate, 8 epochs.",
            ),
            "smoke": Form(
                smoke(256) | {"data.classes": ("all",), "data.image_size": 32},
                own={"simple": SMALL_IMAGES},
                variations=("simple",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=700, epochs=8, seeds=2),
        measures=(
            "highest_validation_top1",
            "epoch_of_highest_validation_top1",
            "best_test_top1",
            "final_test_top1",
            "cifar10_top1",
            "training_minutes",
            "parameters",
            "multiply_adds",
        ),
        claims=(
            Claim("GoogLeNet is better than the plain network", "best_test_top1", "googlenet", "simple"),
            Claim("GoogLeNet is better on CIFAR-10's images, too", "cifar10_top1", "googlenet", "simple"),
            Claim("GoogLeNet takes longer to train", "training_minutes", "googlenet", "simple"),
        ),
        # The map is for the widely copied ten easy classes of ImageNet, two of which match classes of CIFAR-10.
        evaluations=(
            CrossEvaluation(
                "cifar10", {"name": "cifar10"}, class_map={"dog": "English springer", "truck": "garbage truck"}
            ),
        ),
    )
