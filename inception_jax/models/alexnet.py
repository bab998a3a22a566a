"""AlexNet, from Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks" (NeurIPS), in
the one tower of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv)."""

from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax import ops
from inception_jax.errors import check_choice
from inception_jax.models.layers import MaxPool, Network, Outputs, classify, dropout, make_units


class AlexNet(Network):
    """AlexNet with torchvision's logits: five convolutions, three max pools, three dense layers.

    61,100,840 parameters at 1000 classes. It has the features of the one tower (64, 192, 384, 256, 256); the two towers
    of 2012, with 96, 256, 384, 384 and 256, and local response norm are left out. Submodules: `conv1` to `conv5`,
    `pool1`, `pool2`, `pool5`, `fc6`, `fc7`, `fc`.

    Attributes:
      stem: "imagenet", an 11x11 convolution at stride 4; "small", a 3x3 one at stride 1, for images of 32 and 64
        pixels, whose last maps are then 3x3 and 7x7.
      norm: "none" as in both papers, or "batch" after every convolution, which then has no bias.
      norm_epsilon: of batch norm.
      classifier: "paper", three dense layers on 6x6 maps (maps of other sizes are pooled adaptively, as in
        torchvision); "mean", one on the mean over the map, 2.5 million parameters in all: the usual choice for CIFAR.
      dropout_rate: before `fc6` and `fc7`; with the "mean" classifier, before `fc`.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "normal".
    """

    num_classes: int
    stem: str = "imagenet"
    norm: str = "none"
    norm_epsilon: float = 1e-5
    classifier: str = "paper"
    dropout_rate: float = 0.5
    initializer: str = "he_normal"

    # The three pools leave nothing of a map of less than 15 pixels.
    image_sizes: ClassVar = {"imagenet": (224, 63), "small": (32, 15)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        check_choice("classifier", self.classifier, ("paper", "mean"))
        conv, dense = make_units(self, images, paper="normal")
        if self.stem == "imagenet":
            # 2 pixels on every side, not half the kernel, as in torchvision: 224 pixels become 55.
            x = conv(64, (11, 11), (4, 4), ((2, 2), (2, 2)), name="conv1")(images, train)
        else:
            x = conv(64, (3, 3), name="conv1")(images, train)
        x = MaxPool(name="pool1")(x)
        x = conv(192, (5, 5), name="conv2")(x, train)
        x = MaxPool(name="pool2")(x)
        x = conv(384, (3, 3), name="conv3")(x, train)
        x = conv(256, (3, 3), name="conv4")(x, train)
        x = conv(256, (3, 3), name="conv5")(x, train)
        x = MaxPool(name="pool5")(x)
        last_dropout_rate = self.dropout_rate
        if self.classifier == "paper":
            x = ops.adaptive_avg_pool(x, (6, 6)).reshape(x.shape[0], -1)
            for name in ("fc6", "fc7"):
                x = dropout(x, self.dropout_rate, train=train)
                x = nn.relu(dense(4096, name=name)(x))
            last_dropout_rate = 0.0
        return Outputs(classify(x, dense, self.num_classes, last_dropout_rate, train=train))
