"""BN-Inception, from figure 5 of Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by
reducing internal covariate shift" (ICML; the figure is in the arXiv version)."""

from typing import ClassVar, NamedTuple

import jax
from flax import linen as nn

from inception_jax.models.branches import BranchedModule, Branches, Conv, Pool
from inception_jax.models.layers import MaxPool, Network, Outputs, classify, make_units


class Figure5Row(NamedTuple):
    """A row of figure 5: output channels of each convolution of a module, and the kind of its pool.

    The first module of the next stage reads maps of half the size, and has neither conv_1x1 nor pool_proj: its other
    convolutions and its pool have stride 2, and the pool's result passes through.
    """

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    double_reduce: int
    double_3x3: int
    pool: str
    pool_proj: int


FIGURE_5: dict[str, Figure5Row] = {
    "inception_3a": Figure5Row(64, 64, 64, 64, 96, "avg", 32),
    "inception_3b": Figure5Row(64, 64, 96, 64, 96, "avg", 64),
    "inception_3c": Figure5Row(0, 128, 160, 64, 96, "max", 0),
    "inception_4a": Figure5Row(224, 64, 96, 96, 128, "avg", 128),
    "inception_4b": Figure5Row(192, 96, 128, 96, 128, "avg", 128),
    "inception_4c": Figure5Row(160, 128, 160, 128, 160, "avg", 128),
    "inception_4d": Figure5Row(96, 128, 192, 160, 192, "avg", 128),
    "inception_4e": Figure5Row(0, 128, 192, 192, 256, "max", 0),
    "inception_5a": Figure5Row(352, 192, 320, 160, 224, "avg", 128),
    "inception_5b": Figure5Row(352, 192, 320, 192, 224, "max", 128),
}


def module(row: Figure5Row) -> Branches:
    """The branches of a row of figure 5: GoogLeNet's, with two 3x3 convolutions instead of the 5x5 one."""
    halves = not row.conv_1x1
    stride = 2 if halves else 1
    conv_1x1 = () if halves else ((Conv("conv_1x1", row.conv_1x1),),)
    # SAME is what ceil mode gives on even maps; on odd ones, ceil mode's result is smaller than the convolutions'.
    pool = (Pool(row.pool, 2, "SAME"),) if halves else (Pool(row.pool), Conv("pool_proj", row.pool_proj))
    return (
        *conv_1x1,
        (Conv("conv_3x3_reduce", row.conv_3x3_reduce), Conv("conv_3x3", row.conv_3x3, (3, 3), stride)),
        (
            Conv("double_reduce", row.double_reduce),
            Conv("double_3x3_1", row.double_3x3, (3, 3)),
            Conv("double_3x3_2", row.double_3x3, (3, 3), stride),
        ),
        pool,
    )


class BNInception(Network):
    """BN-Inception (Ioffe & Szegedy 2015, figure 5): 11,285,224 parameters at 1000 classes.

    The figure contradicts itself: with the 128 channels that it prints for the pool projections of 4c and 4d, modules
    4c, 4d and 4e have 608, 608 and 1056 channels, not the 576, 576 and 1024 that it also prints and that would need
    96. The widely used weights have 128, and so does this network; with 96 it would have 11,194,984 parameters. Ports
    of those weights keep biases before batch norm, which have no effect: 10,016 more parameters, 11,295,240. The first
    convolution is a full 7x7 one, as in the weights; the paper's is separable.

    Submodules: `conv1`, `pool_1`, `conv2`, `conv3`, `pool_2`, then `inception_3a` to `inception_5b`, `fc`.

    Attributes:
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-5 as in those weights.
      stem: "imagenet", the figure's, divides the map by 8; "small", one 3x3 convolution at stride 1, the usual choice
        for CIFAR.
      dropout_rate: before the classifier; the paper removes dropout.
      initializer: a name from layers.INITIALIZERS, or "paper": it names none, so "he_normal", which its authors'
        TensorFlow version draws all but the 1x1 convolutions from.
    """

    num_classes: int
    norm: str = "batch"
    norm_epsilon: float = 1e-5
    stem: str = "imagenet"
    dropout_rate: float = 0.0
    initializer: str = "he_normal"

    image_sizes: ClassVar = {"imagenet": (224, 7), "small": (32, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        conv, dense = make_units(self, images, paper="he_normal")
        if self.stem == "imagenet":
            x = conv(64, (7, 7), (2, 2), name="conv1")(images, train)
            x = MaxPool(ceil_mode=True, name="pool_1")(x)
            x = conv(64, name="conv2")(x, train)
            x = conv(192, (3, 3), name="conv3")(x, train)
            x = MaxPool(ceil_mode=True, name="pool_2")(x)
        else:
            x = conv(192, (3, 3), name="conv1")(images, train)
        for name, row in FIGURE_5.items():
            x = BranchedModule(module(row), conv, name=name)(x, train)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
