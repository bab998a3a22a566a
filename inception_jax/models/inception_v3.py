"""Inception v2 and v3, from Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision" (CVPR)."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax import ops
from inception_jax.errors import check_choice
from inception_jax.models.branches import BranchedModule, Branches, Conv, Pool, pad, reduction_a
from inception_jax.models.initializers import initializer
from inception_jax.models.layers import (
    ConvUnit,
    MaxPool,
    Network,
    Outputs,
    at_least_float32,
    classify,
    make_units,
)

_RELEASED_CLASSIFIER = initializer("truncated_normal_0.001", nn.initializers.truncated_normal(0.001))


def figure_5(pool_proj: int, factorized: bool, kernel_5x5: int) -> Branches:
    """A module on 35x35 maps; the 5x5 convolution of its third branch is two 3x3 ones where factorized."""
    if factorized:
        double = (Conv("double_3x3_1", 96, (3, 3)), Conv("double_3x3_2", 96, (3, 3)))
    else:
        double = (Conv("double_5x5", 96, (5, 5)),)
    return (
        (Conv("conv_1x1", 64),),
        (Conv("conv_5x5_reduce", 48), Conv("conv_5x5", 64, (kernel_5x5, kernel_5x5))),
        (Conv("double_reduce", 64), *double),
        (Pool("avg"), Conv("pool_proj", pool_proj)),
    )


def reduction_35(factorized: bool) -> Branches:
    """From 35x35 to 17x17 maps (figure 10, without the 1x1 convolution before the single 3x3 one)."""
    if factorized:
        return reduction_a(64, 96, 96, 384)
    conv_3x3, _, pool = reduction_a(64, 96, 96, 384)
    # One pixel of padding: the map is then as large as after a padded and a valid 3x3 convolution.
    return conv_3x3, (Conv("double_reduce", 64), Conv("double_5x5", 96, (5, 5), 2, padding=1)), pool


def figure_6(width: int, factorized: bool) -> Branches:
    """A module on 17x17 maps; its 7x7 convolutions are 1x7 and 7x1 ones where factorized."""
    if factorized:
        conv_7x7 = (Conv("conv_1x7", width, (1, 7)), Conv("conv_7x1", 192, (7, 1)))
        double = (
            Conv("double_7x1_1", width, (7, 1)),
            Conv("double_1x7_1", width, (1, 7)),
            Conv("double_7x1_2", width, (7, 1)),
            Conv("double_1x7_2", 192, (1, 7)),
        )
    else:
        conv_7x7 = (Conv("conv_7x7", 192, (7, 7)),)
        double = (Conv("double_7x7_1", width, (7, 7)), Conv("double_7x7_2", 192, (7, 7)))
    return (
        (Conv("conv_1x1", 192),),
        (Conv("conv_7x7_reduce", width), *conv_7x7),
        (Conv("double_reduce", width), *double),
        (Pool("avg"), Conv("pool_proj", 192)),
    )


def reduction_17(factorized: bool) -> Branches:
    """From 17x17 to 8x8 maps."""
    if factorized:
        double = (Conv("double_1x7", 192, (1, 7)), Conv("double_7x1", 192, (7, 1)))
    else:
        double = (Conv("double_7x7", 192, (7, 7)),)
    return (
        (Conv("conv_3x3_reduce", 192), Conv("conv_3x3", 320, (3, 3), 2, padding=0)),
        (Conv("double_reduce", 192), *double, Conv("double_3x3", 192, (3, 3), 2, padding=0)),
        (Pool("max", 2, padding=0),),
    )


def figure_7(factorized: bool) -> Branches:
    """A module on 8x8 maps; its last 3x3 convolutions are 1x3 beside 3x1 ones where factorized."""
    if factorized:
        conv_3x3 = (Conv("conv_1x3", 384, (1, 3)), Conv("conv_3x1", 384, (3, 1)))
        double = (Conv("double_1x3", 384, (1, 3)), Conv("double_3x1", 384, (3, 1)))
    else:
        conv_3x3 = Conv("conv_3x3", 768, (3, 3))
        double = Conv("double_3x3_2", 768, (3, 3))
    return (
        (Conv("conv_1x1", 320),),
        (Conv("conv_3x3_reduce", 384), conv_3x3),
        (Conv("double_reduce", 448), Conv("double_3x3_1", 384, (3, 3)), double),
        (Pool("avg"), Conv("pool_proj", 192)),
    )


def table_1(factorized: bool = True, kernel_5x5: int = 5) -> dict[str, Branches]:
    """The modules of Table 1, by the names and with the widths of the released network."""
    return {
        "mixed_5b": figure_5(32, factorized, kernel_5x5),
        "mixed_5c": figure_5(64, factorized, kernel_5x5),
        "mixed_5d": figure_5(64, factorized, kernel_5x5),
        "mixed_6a": reduction_35(factorized),
        "mixed_6b": figure_6(128, factorized),
        "mixed_6c": figure_6(160, factorized),
        "mixed_6d": figure_6(160, factorized),
        "mixed_6e": figure_6(192, factorized),
        "mixed_7a": reduction_17(factorized),
        "mixed_7b": figure_7(factorized),
        "mixed_7c": figure_7(factorized),
    }


def apply_stem(
    x: jax.Array, train: bool, conv: Callable[..., ConvUnit], *, stem: str, factorized_7x7: bool = True
) -> jax.Array:
    """The stem of Inception v3 and Inception-ResNet v2: images to maps of 192 channels.

    "imagenet" takes 299 pixels to 35; "small" has the same convolutions, padded and at stride 1, and no pools. To be
    called inside the network's compact `__call__`; `conv` makes the convolution units.
    """
    small = stem == "small"
    stride, padding = (1, None) if small else (2, "VALID")
    if factorized_7x7:
        x = conv(32, (3, 3), (stride, stride), padding, name="conv_1a")(x, train)
        x = conv(32, (3, 3), padding=padding, name="conv_2a")(x, train)
        x = conv(64, (3, 3), name="conv_2b")(x, train)
    else:
        x = conv(64, (7, 7), (stride, stride), padding, name="conv_1a")(x, train)
    x = x if small else MaxPool(name="pool_3a")(x)
    x = conv(80, name="conv_3b")(x, train)
    x = conv(192, (3, 3), padding=padding, name="conv_4a")(x, train)
    return x if small else MaxPool(name="pool_5a")(x)


class InceptionV3AuxHead(nn.Module):
    """The auxiliary classifier: pooling, 1x1 convolution, 5x5 convolution, mean, dense layer.

    The pool averages 5x5 windows at stride 3. On maps below 17x17, where fewer than the 5x5 pixels that the second
    convolution needs would be left, it averages adaptively to 5x5, which spreads still smaller maps.

    Attributes:
      conv: makes the 1x1 convolution's unit.
      conv_fc: makes the 5x5 convolution's, which on 17x17 maps is a fully connected layer.
      dense: makes the dense layer.
    """

    num_classes: int
    conv: Callable[..., ConvUnit] = ConvUnit
    conv_fc: Callable[..., ConvUnit] = ConvUnit
    dense: Callable[..., nn.Dense] = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to logits (batch, num_classes)."""
        large = min(x.shape[1:3]) >= 17
        x = ops.avg_pool(x, (5, 5), (3, 3), "VALID") if large else ops.adaptive_avg_pool(x, (5, 5))
        x = self.conv(128, name="conv1")(x, train)
        x = self.conv_fc(768, (5, 5), padding="VALID", name="conv2")(x, train)
        return self.dense(self.num_classes, name="fc")(x.mean((1, 2)))


class InceptionV3(Network):
    """Inception v3 as released, with torchvision's logits; its fields are the rungs of the ladder from v2.

    Parameters at 1000 classes: 23,834,568; 27,161,264 with the auxiliary head. Submodules: `conv_1a`, `conv_2a`,
    `conv_2b`, `pool_3a`, `conv_3b`, `conv_4a`, `pool_5a`, then `mixed_5b` to `mixed_7c`, `aux`, `fc`, numbered as in
    the released network. Where that differs from the paper, this is the released one: 1x1 and 3x3 convolutions and a
    second pool to 192 channels before the modules, where Table 1 has three 3x3 convolutions to 288; 5x5 kernels at
    35x35, where figure 5 has 3x3.

    The ladder, with the top-1 and top-5 errors of the paper's Table 3 (single crop, %; each row keeps the rows above):

        BN-Inception                 25.2   7.8   "bn_inception"
        Inception v2                 23.4    -    "inception_v2": factorized_kernels=True, kernel_5x5=3
          + RMSProp                  23.1   6.3   the training config's optimizer.name="rmsprop_tensorflow"
          + label smoothing          22.8   6.1   the training config's loss.label_smoothing=0.1
          + factorized 7x7           21.6   5.8   factorized_7x7=True
          + BN-auxiliary, v3         21.2   5.6   aux_norm="batch", with aux_heads=True

    Attributes:
      factorized_kernels: section 3: 7x7 convolutions as 1x7 and 7x1 at 17x17, 3x3 as 1x3 beside 3x1 at 8x8, the 5x5 of
        the `double` branch at 35x35 as two 3x3. False: all of them whole, with the same channels.
      kernel_5x5: side of the kernels of the other 5x5 branch: 5 as released, or 3 as figure 5.
      factorized_7x7: the stem begins with three 3x3 convolutions; False: with one 7x7 convolution, of the same stride
        and map size.
      aux_heads: whether there is an auxiliary classifier, "aux", after mixed_6e.
      aux_norm: "batch", or "none" for a head whose fully connected layer has no batch norm; its 1x1 convolution has it
        either way, which is what the paper's last rung says.
      stem: "imagenet", or "small" for 32 and 64 pixels, after the CIFAR versions in wide use: the stem's convolutions
        at stride 1 without its pools, so that the modules see the full map. Everything is then padded, the reductions
        included: images of 32 pixels give maps of 32, 16 and 8, and no image is too small.
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-3 as released.
      dropout_rate: before the classifier: 0.5 as in torchvision, 0.2 as released.
      initializer: a name from layers.INITIALIZERS, or "paper": it names none, so the released network's
        "truncated_normal_0.1", with smaller deviations in the auxiliary head.
    """

    num_classes: int
    factorized_kernels: bool = True
    kernel_5x5: int = 5
    factorized_7x7: bool = True
    aux_heads: bool = False
    aux_norm: str = "batch"
    stem: str = "imagenet"
    norm: str = "batch"
    norm_epsilon: float = 1e-3
    dropout_rate: float = 0.5
    initializer: str = "he_normal"

    image_sizes: ClassVar = {"imagenet": (299, 75), "small": (32, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        check_choice("kernel_5x5", self.kernel_5x5, (3, 5))
        check_choice("aux_norm", self.aux_norm, ("batch", "none"))
        conv, dense = make_units(self, images, paper="truncated_normal_0.1")
        aux = {}
        x = apply_stem(images, train, conv, stem=self.stem, factorized_7x7=self.factorized_7x7)
        for name, branches in table_1(self.factorized_kernels, self.kernel_5x5).items():
            branches = pad(branches) if self.stem == "small" else branches
            x = BranchedModule(branches, conv, name=name)(x, train)
            if self.aux_heads and name == "mixed_6e":
                aux["aux"] = at_least_float32(aux_head(self, conv, dense)(x, train))
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train), aux)


def aux_head(network: InceptionV3, conv: Callable[..., ConvUnit], dense: Callable[..., nn.Dense]) -> InceptionV3AuxHead:
    """The auxiliary head of a network with these units, as its fields norm, aux_norm and initializer ask for.

    To be called inside the network's compact `__call__`, whose submodule `aux` it becomes.
    """
    conv_fc = conv if network.norm == "none" else partial(conv, norm=network.aux_norm)
    if network.initializer == "paper":  # as released, with smaller deviations than in the rest of the network
        conv_fc = partial(conv_fc, initializer="truncated_normal")
        dense = partial(dense, kernel_init=_RELEASED_CLASSIFIER)
    return InceptionV3AuxHead(network.num_classes, conv, conv_fc, dense, name="aux")


class InceptionV2(InceptionV3):
    """The paper's Inception v2: the same network on the lowest rung of the ladder to v3, see InceptionV3.

    23,667,880 parameters at 1000 classes; 26,993,808 with the auxiliary head.
    """

    kernel_5x5: int = 3
    factorized_7x7: bool = False
    aux_norm: str = "none"
