"""Inception v4, from Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning" (AAAI), figures 3 to 9."""

from functools import partial
from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax.models.branches import BranchedModule, Branches, Conv, Pool, pad, reduction_a
from inception_jax.models.layers import Network, Outputs, classify, make_units

AVG_POOL = Pool("avg", count_include_pad=False)

INCEPTION_A: Branches = (  # figure 4, 35x35 maps
    (Conv("conv_1x1", 96),),
    (Conv("conv_3x3_reduce", 64), Conv("conv_3x3", 96, (3, 3))),
    (Conv("double_reduce", 64), Conv("double_3x3_1", 96, (3, 3)), Conv("double_3x3_2", 96, (3, 3))),
    (AVG_POOL, Conv("pool_proj", 96)),
)
REDUCTION_A = reduction_a(192, 224, 256, 384)  # figure 7; the row of Table 1 for Inception v4
INCEPTION_B: Branches = (  # figure 5, 17x17 maps
    (Conv("conv_1x1", 384),),
    (Conv("conv_7x7_reduce", 192), Conv("conv_1x7", 224, (1, 7)), Conv("conv_7x1", 256, (7, 1))),
    (
        Conv("double_reduce", 192),
        Conv("double_7x1_1", 192, (7, 1)),
        Conv("double_1x7_1", 224, (1, 7)),
        Conv("double_7x1_2", 224, (7, 1)),
        Conv("double_1x7_2", 256, (1, 7)),
    ),
    (AVG_POOL, Conv("pool_proj", 128)),
)
REDUCTION_B: Branches = (  # figure 8, from 17x17 to 8x8 maps
    (Conv("conv_3x3_reduce", 192), Conv("conv_3x3", 192, (3, 3), 2, padding=0)),
    (
        Conv("double_reduce", 256),
        Conv("double_1x7", 256, (1, 7)),
        Conv("double_7x1", 320, (7, 1)),
        Conv("double_3x3", 320, (3, 3), 2, padding=0),
    ),
    (Pool("max", 2, padding=0),),
)
INCEPTION_C: Branches = (  # figure 6, 8x8 maps
    (Conv("conv_1x1", 256),),
    (Conv("conv_3x3_reduce", 384), (Conv("conv_1x3", 256, (1, 3)), Conv("conv_3x1", 256, (3, 1)))),
    (
        Conv("double_reduce", 384),
        Conv("double_3x1_1", 448, (3, 1)),
        Conv("double_1x3_1", 512, (1, 3)),
        (Conv("double_1x3_2", 256, (1, 3)), Conv("double_3x1_2", 256, (3, 1))),
    ),
    (AVG_POOL, Conv("pool_proj", 256)),
)


def stem_modules(stride: int = 2) -> dict[str, Branches]:
    """What follows the stem's first three convolutions (figure 3)."""
    pool = Pool("max", stride, padding=0)
    return {
        "mixed_3a": ((pool,), (Conv("conv_3x3", 96, (3, 3), stride, padding=0),)),
        "mixed_4a": (
            (Conv("conv_3x3_reduce", 64), Conv("conv_3x3", 96, (3, 3), padding=0)),
            (
                Conv("double_reduce", 64),
                Conv("double_1x7", 64, (1, 7)),
                Conv("double_7x1", 64, (7, 1)),
                Conv("double_3x3", 96, (3, 3), padding=0),
            ),
        ),
        "mixed_5a": ((Conv("conv_3x3", 192, (3, 3), stride, padding=0),), (pool,)),
    }


def figure_9(repeats: tuple[int, int, int]) -> dict[str, Branches]:
    """What follows the stem: modules A, B and C, each repeated, with the reductions between them."""
    a, b, c = repeats
    return {
        **{f"inception_a{i}": INCEPTION_A for i in range(1, a + 1)},
        "reduction_a": REDUCTION_A,
        **{f"inception_b{i}": INCEPTION_B for i in range(1, b + 1)},
        "reduction_b": REDUCTION_B,
        **{f"inception_c{i}": INCEPTION_C for i in range(1, c + 1)},
    }


class InceptionV4(Network):
    """Inception v4 (Szegedy et al. 2017, figure 9), with timm's logits: 42,679,816 parameters at 1000 classes.

    The order of 1xn and nx1 convolutions is that of the released network, and differs from the figures' in places.

    Submodules: `conv_1a`, `conv_2a`, `conv_2b`, `mixed_3a`, `mixed_4a`, `mixed_5a` (numbered as in the released
    network), `inception_a1` to `inception_a4`, `reduction_a`, `inception_b1` to `inception_b7`, `reduction_b`,
    `inception_c1` to `inception_c3`, `fc`.

    Attributes:
      repeats: the numbers of modules A, B and C: (4, 7, 3).
      stem: "imagenet", figure 3, takes 299 pixels to 35; "small", for 32 and 64 pixels, after the CIFAR versions in
        wide use: figure 3 at stride 1 throughout, so that the modules see the full map. Everything is then padded, the
        reductions included: images of 32 pixels give maps of 32, 16 and 8, and no image is too small.
      norm: "batch"; "none" is what folding its batch norm leaves.
      norm_epsilon: of batch norm: 1e-3 as released.
      dropout_rate: before the classifier: 0.2 as in figure 9, which keeps 0.8.
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
        small = self.stem == "small"
        stride, padding = (1, None) if small else (2, "VALID")
        conv_3x3 = partial(conv, kernel_size=(3, 3))
        x = conv_3x3(32, strides=(stride, stride), padding=padding, name="conv_1a")(images, train)
        x = conv_3x3(32, padding=padding, name="conv_2a")(x, train)
        x = conv_3x3(64, name="conv_2b")(x, train)
        for name, branches in {**stem_modules(stride), **figure_9(self.repeats)}.items():
            branches = pad(branches) if small else branches
            x = BranchedModule(branches, conv, name=name)(x, train)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
