"""Residual networks, from Table 1 of He et al. 2016, "Deep residual learning for image recognition" (CVPR)."""

from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax.models.layers import ConvUnit, Dtype, MaxPool, Outputs, check_choice, classify, initializer_name

# The columns of Table 1 by depth: the kind of block, and how many of it each stage (conv2_x to conv5_x) has.
TABLE_1: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
STEMS = ("imagenet", "small")


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut around them (He et al. 2016, figure 5); ReLU follows the sum.

    The shortcut is the input where it has the output's shape, else a 1x1 convolution without activation, `projection`
    (option B).

    Attributes:
      block: "basic", two 3x3 convolutions; "bottleneck", 1x1, 3x3 and 1x1, the last with four times the features.
      features: of the 3x3 convolutions.
      stride: of the block, taken by its first 3x3 convolution and by the projection.
      zero_init: whether the last batch norm's scales start at 0, and so the block as its shortcut alone.
    """

    block: str
    features: int
    stride: int = 1
    norm: str = "batch"
    norm_epsilon: float = 1e-5
    zero_init: bool = False
    initializer: str = "he_normal"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, ceil(height / stride), ceil(width / stride), features or 4x)."""
        conv = partial(
            ConvUnit,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            initializer=self.initializer,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        features, strides = self.features, (self.stride, self.stride)
        if self.block == "basic":
            y = conv(features, (3, 3), strides, name="conv1")(x, train)
            y = conv(features, (3, 3), activation=None, zero_init=self.zero_init, name="conv2")(y, train)
        else:
            y = conv(features, name="conv1")(x, train)
            y = conv(features, (3, 3), strides, name="conv2")(y, train)
            y = conv(4 * features, activation=None, zero_init=self.zero_init, name="conv3")(y, train)
        if x.shape != y.shape:
            x = conv(y.shape[-1], strides=strides, activation=None, name="projection")(x, train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 and 152 (He et al. 2016, Table 1), with torchvision's logits.

    Bottlenecks halve the map in their 3x3 convolution, as torchvision's do ("v1.5"); the paper's do in the first 1x1.

    Parameters at 1000 classes, by depth: 11,689,512; 21,797,672; 25,557,032; 44,549,160; 60,192,808. Submodules:
    `conv1`, then `stage1_block1` and so on, each with `conv1`, `conv2`, in bottlenecks `conv3`, and where shapes differ
    `projection`; `fc`. The paper's conv2_x is stage 1.

    Attributes:
      block: "basic" or "bottleneck", see ResidualBlock.
      stage_sizes: blocks of each stage. The first stage's 3x3 convolutions have 64 features; each further stage doubles
        them and halves the map.
      stem: "imagenet", a 7x7 convolution and a max pool that divide the map by 4; "small", one 3x3 convolution that
        keeps it, the usual choice for CIFAR.
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-5 as torchvision.
      zero_init_residual: whether every block starts as its shortcut alone, the scales of its last batch norm at 0, so
        that a deep network starts to learn as fast as a shallow one (Goyal et al. 2017, "Accurate, large minibatch
        SGD", section 5.1). torchvision's default is False too, timm's (`zero_init_last`) is True.
      dropout_rate: before the classifier; neither the paper nor torchvision has any.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "he_normal".
      dtype: of the computation; None: that of the inputs and parameters.
    """

    block: str
    stage_sizes: tuple[int, ...]
    num_classes: int
    stem: str = "imagenet"
    norm: str = "batch"
    norm_epsilon: float = 1e-5
    zero_init_residual: bool = False
    dropout_rate: float = 0.0
    initializer: str = "he_normal"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    min_image_size: ClassVar[int] = 1  # side of the smallest images that it can take, pixels

    @property
    def native_image_size(self) -> int:
        """Side of the images that the network is made for, pixels."""
        return 224 if self.stem == "imagenet" else 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalised, to Outputs.

        Raises:
          UserError: an option has a value that is not allowed.
        """
        check_choice("block", self.block, ("basic", "bottleneck"))
        check_choice("stem", self.stem, STEMS)
        check_choice("norm", self.norm, ("batch", "none"))
        initializer = initializer_name(self.initializer, "he_normal")
        common = {"initializer": initializer, "dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"norm": self.norm, "norm_epsilon": self.norm_epsilon}
        conv1 = partial(ConvUnit, 64, name="conv1", **norm, **common)
        if self.stem == "imagenet":
            x = conv1((7, 7), (2, 2))(images, train)
            # Padded as in PyTorch; SAME would pad behind alone.
            x = MaxPool(padding=((1, 1), (1, 1)), name="pool1")(x)
        else:
            x = conv1((3, 3))(images, train)
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                name = f"stage{stage}_block{index}"
                block = partial(ResidualBlock, self.block, 64 * 2 ** (stage - 1), stride, **norm, **common)
                x = block(zero_init=self.zero_init_residual, name=name)(x, train)
        logits = classify(x, self.num_classes, train=train, dropout_rate=self.dropout_rate, **common)
        return Outputs(logits)
