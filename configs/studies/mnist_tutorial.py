"""Study D: GoogLeNet on MNIST as in a tutorial, with the paper's kernels and with the tutorial's.

inception-jax study mnist_tutorial --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation


def get_study():
    return Study(
        title="GoogLeNet on MNIST, a tutorial",
        source="GoogLeNet on MNIST, a tutorial: accuracy after 40 epochs.",
        text="""
Images of three equal channels, padded to 32 pixels and enlarged to 224; the last 2,000 training images are the
validation split; Adam and kernels as Keras has them, batches of 64, 40 epochs; the losses of the main and the two
auxiliary heads count 1, 0.3 and 0.3. Keras also trains on the last, incomplete batch of an epoch, its 907th step, whose
16 images are left out here. It stores the enlarged images as real numbers; ours are rounded to 256 levels.

Its published module has 1x1 kernels where the paper has 3x3 and 5x5 ones, and its max pools are not padded: 5,269,326
parameters with the heads, 2,754,106 without. Both forms are trained.
""",
        config="googlenet_mnist",
        fields={
            "model.norm": "none",
            "model.aux_heads": True,
            "model.aux_pool": "paper",
            "model.dropout_rate": 0.4,
            "model.initializer": "glorot_uniform",
            "data.pad": 2,
            "data.image_size": 224,
            "data.channels": 3,
            "data.normalization": "unit",
            "batch_size": 64,
            "num_epochs": 40,
            "data.splits.train": "train[:58000]",
            "data.splits.validation": "train[58000:]",
            "optimizer.name": "adam",
            "optimizer.epsilon": 1e-7,
            "optimizer.weight_decay": 0.0,
            "schedule.name": "constant",
            "schedule.learning_rate": 1e-3,
            "schedule.warmup_epochs": 0.0,
        },
        variations={
            "paper_kernels": Variation(),
            "tutorial_kernels": Variation(
                {"model.kernel_3x3": 1, "model.kernel_5x5": 1, "model.pool_padding": "valid"},
                published={
                    "final_validation_top1": 0.9955,
                    "final_validation_loss": 0.0321,
                    "final_test_top1": 0.9929,
                    "final_test_loss": 0.0299,
                    "final_test_aux1_top1": 0.9923,
                    "final_test_aux1_loss": 0.0335,
                    "final_test_aux2_top1": 0.9918,
                    "final_test_aux2_loss": 0.0388,
                    "parameters": 5_269_326,
                },
            ),
        },
        forms={
            "full": Form(seeds=(0, 1, 2), note="58,000 images of 224 pixels, 40 epochs, for a GPU."),
            "cores": Form(
                own={"paper_kernels": {"num_epochs": 4}, "tutorial_kernels": {"num_epochs": 10}},
                minimum=Minimum(images=57_000, epochs=4),
                note="58,000 images of 224 pixels; 10 of the 40 epochs with the tutorial's kernels, 4 with the "
                "paper's, one seed, for two CPU cores in a day.",
            ),
            "cpu": Form(
                {
                    "data.image_size": 32,
                    "model.stem": "small_pooled",
                    "model.aux_pool": "adaptive",
                    "num_epochs": 4,
                    "data.splits.train": "train[:10000]",
                    "schedule.learning_rate": 5e-4,
                },
                seeds=(0, 1, 2),
                note="10,000 images of 32 pixels, 4 epochs, half the rate; larger heads, on 4x4 maps.",
            ),
            "smoke": Form(
                {
                    "data.image_size": 32,
                    "model.stem": "small_pooled",
                    "model.aux_pool": "adaptive",
                    "num_epochs": 1,
                    "data.splits.train": "train[:256]",
                    "data.splits.validation": "train[-128:]",
                    "data.splits.test": "test[:128]",
                },
                variations=("tutorial_kernels",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=9000, epochs=4, seeds=2),
        measures=(
            "final_validation_top1",
            "final_validation_loss",
            "final_test_top1",
            "final_test_loss",
            "final_test_aux1_top1",
            "final_test_aux1_loss",
            "final_test_aux2_top1",
            "final_test_aux2_loss",
            "best_test_top1",
            "parameters",
            "multiply_adds",
        ),
        curves=("train_loss", "validation_loss", "train_top1", "validation_top1"),
        claims=(Claim("the paper's kernels are better", "final_test_top1", "paper_kernels", "tutorial_kernels"),),
    )
