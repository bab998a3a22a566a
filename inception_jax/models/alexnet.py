"""AlexNet, from Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks" (NeurIPS), in
the one tower of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv)."""

from functools import partial

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.models.layers import (
    INITIALIZERS,
    ConvUnit,
    Dtype,
    MaxPool,
    Outputs,
    check_choice,
    check_image_size,
    classify,
    dropout,
    initializer_name,
)

STEMS = ("imagenet", "small")


class AlexNet(nn.Module):
    """AlexNet with torchvision's logits: five convolutions, three max pools, three dense layers.

    61,100,840 parameters at 1000 classes. It has the features of the one tower (64, 192, 384, 256, 256); the two towers
    of 2012, with 96, 256, 384, 384 and 256, and the local response norm are no part of it. Submodules: `conv1` to
    `conv5`, `pool1`, `pool2`, `pool5`, `fc6`, `fc7`, `fc`.

    Attributes:
      stem: "imagenet", an 11x11 convolution that divides the map by 4; "small", a 3x3 one that keeps it, for 32 and 64
        pixels, whose maps are then 3x3 and 7x7 at the end.
      norm: "none" as both papers, or "batch" after every convolution, which then has no bias.
      norm_epsilon: of batch norm.
      classifier: "paper", three dense layers on 6x6 maps, to which maps of other sizes are averaged or spread, as
        torchvision; "mean", one on the mean over the map, 2.5 million parameters in all: the usual choice for CIFAR.
      dropout_rate: before `fc6` and `fc7`; with the "mean" classifier, before `fc`.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "normal".
      dtype: of the computation; None: that of the inputs and parameters.
    """

    num_classes: int
    stem: str = "imagenet"
    norm: str = "none"
    norm_epsilon: float = 1e-5
    classifier: str = "paper"
    dropout_rate: float = 0.5
    initializer: str = "he_normal"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def native_image_size(self) -> int:
        """Side of the images that the network is made for, pixels."""
        return 224 if self.stem == "imagenet" else 32

    @property
    def min_image_size(self) -> int:
        """Side of the smallest images that it can take, pixels: the three pools use up a map of less than 15."""
        return 63 if self.stem == "imagenet" else 15

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalised, to Outputs.

        Raises:
          UserError: an option has a value that is not allowed, or the images are too small.
        """
        check_choice("stem", self.stem, STEMS)
        check_choice("norm", self.norm, ("none", "batch"))
        check_choice("classifier", self.classifier, ("paper", "mean"))
        check_image_size(images, self.min_image_size)
        initializer = initializer_name(self.initializer, "normal")
        common = {"initializer": initializer, "dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvUnit, norm=self.norm, norm_epsilon=self.norm_epsilon, **common)
        if self.stem == "imagenet":
            # 2 pixels, not half the kernel, on every side, as torchvision has it: 224 pixels become 55.
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
                dense = nn.Dense(
                    4096,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    kernel_init=INITIALIZERS[initializer],
                    name=name,
                )
                x = nn.relu(dense(x))
            last_dropout_rate = 0.0
        logits = classify(x, self.num_classes, train=train, dropout_rate=last_dropout_rate, **common)
        return Outputs(logits)
