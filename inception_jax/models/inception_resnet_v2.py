"""Inception-ResNet v2, from Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the impact of residual connections
on learning" (AAAI), as released."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax.models.branches import BranchedModule, Branches, Conv, Pool, apply_branches, pad, reduction_a
from inception_jax.models.inception_v3 import apply_stem
from inception_jax.models.layers import ConvUnit, Network, Outputs, classify, make_units

MIXED_5B: Branches = (
    (Conv("conv_1x1", 96),),
    (Conv("conv_5x5_reduce", 48), Conv("conv_5x5", 64, (5, 5))),
    (Conv("double_reduce", 64), Conv("double_3x3_1", 96, (3, 3)), Conv("double_3x3_2", 96, (3, 3))),
    (Pool("avg", count_include_pad=False), Conv("pool_proj", 64)),
)
BLOCK_35: Branches = (  # figure 16, 35x35 maps
    (Conv("conv_1x1", 32),),
    (Conv("conv_3x3_reduce", 32), Conv("conv_3x3", 32, (3, 3))),
    (Conv("double_reduce", 32), Conv("double_3x3_1", 48, (3, 3)), Conv("double_3x3_2", 64, (3, 3))),
)
MIXED_6A = reduction_a(256, 256, 384, 384)  # figure 7; the row of Table 1 for Inception-ResNet v2
BLOCK_17: Branches = (  # figure 17, 17x17 maps
    (Conv("conv_1x1", 192),),
    (Conv("conv_7x7_reduce", 128), Conv("conv_1x7", 160, (1, 7)), Conv("conv_7x1", 192, (7, 1))),
)
MIXED_7A: Branches = (  # figure 18, from 17x17 to 8x8 maps
    (Conv("conv_3x3_reduce_1", 256), Conv("conv_3x3_1", 384, (3, 3), 2, padding=0)),
    (Conv("conv_3x3_reduce_2", 256), Conv("conv_3x3_2", 288, (3, 3), 2, padding=0)),
    (Conv("double_reduce", 256), Conv("double_3x3_1", 288, (3, 3)), Conv("double_3x3_2", 320, (3, 3), 2, padding=0)),
    (Pool("max", 2, padding=0),),
)
BLOCK_8: Branches = (  # figure 19, 8x8 maps
    (Conv("conv_1x1", 192),),
    (Conv("conv_3x3_reduce", 192), Conv("conv_1x3", 224, (1, 3)), Conv("conv_3x1", 256, (3, 1))),
)


class ResidualModule(nn.Module):
    """Branches, concatenated, projected to the input's channels, scaled and added to the input; then ReLU.

    Attributes:
      scale: of what is added (section 3.3).
      activate: whether a ReLU follows the sum.
      conv: makes the convolution units: ConvUnit, given the network's options.
    """

    branches: Branches
    scale: float
    activate: bool = True
    conv: Callable[..., ConvUnit] = ConvUnit

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to the same shape."""
        y = apply_branches(self.branches, x, train, self.conv)
        # A bias: to save memory there is no batch norm around the sums (section 3.2).
        y = self.conv(x.shape[-1], norm="none", activation=None, name="projection")(y, train)
        y = x + self.scale * y
        return nn.relu(y) if self.activate else y


class InceptionResNetV2(Network):
    """Inception-ResNet v2 as released, with timm's logits: 55,843,464 parameters at 1000 classes.

    The released network has Inception v3's stem and another first module, 320, 1088 and 2080 channels at 35x35, 17x17
    and 8x8, and 10, 20 and 10 residual modules, where the paper has Inception v4's stem, 384, 1154 and 2048 (in figures
    16, 17 and 19), and 5, 10 and 5 (figure 15). Its last residual module is added in full and has no ReLU; a 1x1
    convolution to 1536 channels follows.

    Submodules: the stem's, see `inception_v3.InceptionV3`, then `mixed_5b`, `block35_1` to `block35_10`, `mixed_6a`,
    `block17_1` to `block17_20`, `mixed_7a`, `block8_1` to `block8_10`, `conv_7b`, `fc`; numbered as in the released
    network.

    Attributes:
      repeats: the numbers of residual modules at 35x35, 17x17 and 8x8: (10, 20, 10).
      stem: "imagenet", or "small" for 32 and 64 pixels, as Inception v3's; all reductions are then padded.
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-3 as released.
      dropout_rate: before the classifier: 0.2 as in figure 15, which keeps 0.8.
      initializer: a name from layers.INITIALIZERS, or "paper": it names none, so the released network's "he_normal".
    """

    repeats: tuple[int, int, int]
    num_classes: int
    stem: str = "imagenet"
    norm: str = "batch"
    norm_epsilon: float = 1e-3
    dropout_rate: float = 0.2
    initializer: str = "he_normal"

    image_sizes: ClassVar = {"imagenet": (299, 75), "small": (32, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        conv, dense = make_units(self, images, paper="he_normal")

        def mixed(name: str, branches: Branches, x: jax.Array) -> jax.Array:
            branches = pad(branches) if self.stem == "small" else branches
            return BranchedModule(branches, conv, name=name)(x, train)

        block = partial(ResidualModule, conv=conv)
        count_35, count_17, count_8 = self.repeats
        x = apply_stem(images, train, conv, stem=self.stem)
        x = mixed("mixed_5b", MIXED_5B, x)
        for i in range(1, count_35 + 1):
            x = block(BLOCK_35, 0.17, name=f"block35_{i}")(x, train)
        x = mixed("mixed_6a", MIXED_6A, x)
        for i in range(1, count_17 + 1):
            x = block(BLOCK_17, 0.10, name=f"block17_{i}")(x, train)
        x = mixed("mixed_7a", MIXED_7A, x)
        for i in range(1, count_8):
            x = block(BLOCK_8, 0.20, name=f"block8_{i}")(x, train)
        x = block(BLOCK_8, 1.0, activate=False, name=f"block8_{count_8}")(x, train)
        x = conv(1536, name="conv_7b")(x, train)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
