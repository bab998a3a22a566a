"""Study C: from Inception v2 to v3 step by step, one named field per step.

inception-jax study inception_ladder --form cpu
"""

from inception_jax.studies import Claim, Form, Minimum, Study, Variation

RUNGS = {
    "v2": {},
    "rmsprop": {"optimizer.name": "rmsprop_tensorflow", "schedule.learning_rate": 0.01, "optimizer.epsilon": 1.0},
    "label_smoothing": {"loss.label_smoothing": 0.1},
    "factorized_7x7": {"model.factorized_7x7": True},
    "batch_norm_aux": {"model.aux_norm": "batch"},
}
# Reported by the paper: top-1 error on ImageNet of each step including all before it, in percent.
IMAGENET_ERRORS = {
    "v2": 23.4, "rmsprop": 23.1, "label_smoothing": 22.8, "factorized_7x7": 21.6, "batch_norm_aux": 21.2
}  # fmt: skip


def get_study():
    variations, fields = {}, {}
    for name, rung in RUNGS.items():
        fields = fields | rung
        note = f"ImageNet top-1 error {IMAGENET_ERRORS[name]} %"
        variations[name] = Variation(dict(fields), note=note if name == "v2" else f"{note}; with all rungs before it")
    return Study(
        title="From Inception v2 to v3, rung by rung",
        source="Szegedy et al. 2016, Rethinking the Inception architecture, table 3: ImageNet, single crop.",
        text="""
Each rung adds one change to the network or its training; the last one is the paper's Inception v3 (the released one has
5x5 kernels in a branch of three modules, where this has 3x3). On CIFAR-10 with the stem for small images; the paper's
figures, beside the rungs' names, are of ImageNet, so that only the order can be compared.
""",
        config="googlenet_cifar10",
        fields={
            "model.name": "inception_v2",
            "model.stem": "small",
            "model.aux_heads": True,
            "model.aux_norm": "none",
            "model.factorized_7x7": False,
            "model.dropout_rate": 0.2,
            "loss.label_smoothing": 0.0,
        },
        variations=variations,
        forms={
            "full": Form({"num_epochs": 60}, seeds=(0, 1, 2), note="45,000 images, 60 epochs, for a GPU."),
            "cpu": Form(
                {
                    "num_epochs": 2,
                    "batch_size": 32,
                    "data.image_size": 12,
                    "data.splits.train": "train[:500]",
                    "data.splits.validation": "train[-500:]",
                    "data.splits.test": "test[:500]",
                },
                note="500 images made 12 pixels small, 2 epochs: to see the rungs work; their worth needs a GPU.",
            ),
            "smoke": Form(
                {
                    "num_epochs": 1,
                    "batch_size": 16,
                    "data.splits.train": "train[:32]",
                    "data.splits.validation": "train[-32:]",
                    "data.splits.test": "test[:32]",
                },
                variations=("v2",),
                note="To see that it runs.",
            ),
        },
        minimum=Minimum(images=40_000, epochs=30, seeds=2),
        measures=("best_test_top1", "final_test_top1", "training_minutes", "parameters"),
        claims=(
            Claim("RMSProp helps", "best_test_top1", "rmsprop", "v2"),
            Claim("label smoothing helps", "best_test_top1", "label_smoothing", "rmsprop"),
            Claim("factorized 7x7 convolutions help", "best_test_top1", "factorized_7x7", "label_smoothing"),
            Claim("batch norm in the auxiliary head helps", "best_test_top1", "batch_norm_aux", "factorized_7x7"),
        ),
    )
