"""Residual networks, from Table 1 of He et al. 2016, "Deep residual learning for image recognition" (CVPR)."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax.errors import check_choice
from inception_jax.models.layers import ConvUnit, MaxPool, Network, Outputs, classify, make_units

# The columns of Table 1 by depth: the kind of block, and how many of it each stage (conv2_x to conv5_x) has.
TABLE_1: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut around them (He et al. 2016, figure 5); ReLU follows the sum.

    The shortcut is the input if it has the output's shape, otherwise a 1x1 convolution without activation, `projection`
    (option B).

    Attributes:
      block: "basic", two 3x3 convolutions; "bottleneck", 1x1, 3x3 and 1x1, the last with four times the features.
      features: of the 3x3 convolutions.
      stride: of the block, taken by its first 3x3 convolution and by the projection.
      zero_init: whether the last batch norm's scales start at 0, so that the block starts as its shortcut alone.
      conv: makes the convolution units: ConvUnit, given the network's options.
    """

    block: str
    features: int
    stride: int = 1
    zero_init: bool = False
    conv: Callable[..., ConvUnit] = ConvUnit

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, ceil(height / stride), ceil(width / stride), features or 4x)."""
        conv, features, strides = self.conv, self.features, (self.stride, self.stride)
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


class ResNet(Network):
    """ResNet-18, 34, 50, 101 and 152 (He et al. 2016, Table 1), with torchvision's logits.

    Bottlenecks halve the map in their 3x3 convolution, as torchvision's do ("v1.5"); the paper's do in the first 1x1.

    Parameters at 1000 classes, by depth: 11,689,512; 21,797,672; 25,557,032; 44,549,160; 60,192,808. Submodules:
    `conv1`, then `stage1_block1` and so on, each with `conv1`, `conv2`, in bottlenecks `conv3`, and where shapes differ
    `projection`; `fc`. The paper's conv2_x is stage 1.

    Attributes:
      block: "basic" or "bottleneck", see ResidualBlock.
      stage_sizes: blocks of each stage. The first stage's 3x3 convolutions have 64 features; each further stage doubles
        them and halves the map.
      stem: "imagenet", a 7x7 convolution and a max pool that divide the map by 4; "small", one 3x3 convolution at
        stride 1, the usual choice for CIFAR.
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-5 as in torchvision.
      zero_init_residual: whether every block starts as its shortcut alone, the scales of its last batch norm at 0, so
        that a deep network starts to learn as fast as a shallow one (Goyal et al. 2017, "Accurate, large minibatch
        SGD", section 5.1). torchvision's default is False too, timm's (`zero_init_last`) is True.
      dropout_rate: before the classifier; neither the paper nor torchvision uses dropout there.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "he_normal".
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

    image_sizes: ClassVar = {"imagenet": (224, 1), "small": (32, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        check_choice("block", self.block, ("basic", "bottleneck"))
        conv, dense = make_units(self, images, paper="he_normal")
        conv1 = partial(conv, 64, name="conv1")
        if self.stem == "imagenet":
            x = conv1((7, 7), (2, 2))(images, train)
            # Padded as in PyTorch; SAME would pad only at the end.
            x = MaxPool(padding=((1, 1), (1, 1)), name="pool1")(x)
        else:
            x = conv1((3, 3))(images, train)
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                name = f"stage{stage}_block{index}"
                block = ResidualBlock(
                    self.block, 64 * 2 ** (stage - 1), stride, self.zero_init_residual, conv, name=name
                )
                x = block(x, train)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
