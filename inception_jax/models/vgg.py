"""VGG, from Table 1 of Simonyan & Zisserman 2015, "Very deep convolutional networks for large-scale image recognition"
(ICLR)."""

from functools import partial

import jax
from flax import linen as nn

from inception_jax import ops
from inception_jax.errors import check_choice
from inception_jax.models.layers import (
    INITIALIZERS,
    MaxPool,
    Network,
    Outputs,
    classify,
    dropout,
    make_units,
)

# The columns of Table 1 that have 3x3 convolutions and no local response norm: convolutions before each max pool.
TABLE_1: dict[str, tuple[int, ...]] = {
    "A": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}


class VGG(Network):
    """VGG-11, 13, 16 and 19 (Simonyan & Zisserman 2015, Table 1: A, B, D, E), with torchvision's logits.

    Parameters at 1000 classes, by depth: 132,863,336; 133,047,848; 138,357,544; 143,667,240; with batch norm
    132,868,840; 133,053,736; 138,365,992; 143,678,248. Submodules: `conv1_1`, `conv1_2` and so on, `pool1` to `pool5`,
    `fc6`, `fc7` (so named at every depth, as the authors' released networks are), `fc`.

    Attributes:
      stage_sizes: 3x3 convolutions of each stage, which a 2x2 max pool ends, so images have at least 2 ** stages pixels
        a side. The first stage has 64 features; each further one doubles them, up to 512.
      norm: "none" as in the paper, or "batch" after every convolution, which keeps its bias, as in torchvision, though
        it has no effect in training.
      norm_epsilon: of batch norm: 1e-5 as in torchvision.
      classifier: "paper", three dense layers on 7x7 maps (maps of other sizes are pooled adaptively, as in
        torchvision); "mean", one on the mean over the map, the usual choice for 32 and 64 pixels.
      hidden_features: of `fc6` and `fc7`, which only the classifier "paper" has.
      dropout_rate: before every dense layer but `fc6`.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "normal": a standard deviation of 0.01, as in
        implementations of the paper, in which 0.01 is the variance. "he_normal" applies to the convolutions; the three
        dense layers of the classifier "paper" then use "normal", as in torchvision. With He's initializer there, the
        loss of torchvision's vgg19_bn on CIFAR-10 (batches of 64, rate 0.01) began at 7.6 instead of 2.5 and rose to 80
        instead of 6.3.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int
    norm: str = "none"
    norm_epsilon: float = 1e-5
    classifier: str = "paper"
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    initializer: str = "he_normal"

    @property
    def native_image_size(self) -> int:
        """Side of the images that the network is made for, pixels."""
        return 224 if self.classifier == "paper" else 32

    @property
    def min_image_size(self) -> int:
        """Side of the smallest images that it accepts, pixels."""
        return 2 ** len(self.stage_sizes)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        check_choice("classifier", self.classifier, ("paper", "mean"))
        conv, dense = make_units(self, images, paper="normal")
        conv = partial(conv, kernel_size=(3, 3), use_bias=True)
        x = images
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                x = conv(min(64 * 2 ** (stage - 1), 512), name=f"conv{stage}_{index}")(x, train)
            x = MaxPool((2, 2), name=f"pool{stage}")(x)
        if self.classifier == "paper":
            if self.initializer == "he_normal":
                dense = partial(dense, kernel_init=INITIALIZERS["normal"])
            x = ops.adaptive_avg_pool(x, (7, 7)).reshape(x.shape[0], -1)
            x = nn.relu(dense(self.hidden_features, name="fc6")(x))
            x = dropout(x, self.dropout_rate, train=train)
            x = nn.relu(dense(self.hidden_features, name="fc7")(x))
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
