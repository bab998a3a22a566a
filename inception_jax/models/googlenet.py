"""GoogLeNet, from Table 1 of Szegedy et al. 2015, "Going deeper with convolutions" (CVPR)."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.errors import UserError, check_choice
from inception_jax.models.layers import (
    NORMS,
    BatchNorm,
    ConvUnit,
    MaxPool,
    Network,
    Outputs,
    apply_siblings,
    at_least_float32,
    check_image_size,
    classify,
    dropout,
    make_units,
)


class Inception(NamedTuple):
    """A row of Table 1: output channels of each convolution of an Inception module."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    conv_5x5_reduce: int
    conv_5x5: int
    pool_proj: int


# The body of the network; "max_pool" halves the map.
TABLE_1: dict[str, Inception | str] = {
    "inception_3a": Inception(64, 96, 128, 16, 32, 32),
    "inception_3b": Inception(128, 128, 192, 32, 96, 64),
    "pool_3": "max_pool",
    "inception_4a": Inception(192, 96, 208, 16, 48, 64),
    "inception_4b": Inception(160, 112, 224, 24, 64, 64),
    "inception_4c": Inception(128, 128, 256, 24, 64, 64),
    "inception_4d": Inception(112, 144, 288, 32, 64, 64),
    "inception_4e": Inception(256, 160, 320, 32, 128, 128),
    "pool_4": "max_pool",
    "inception_5a": Inception(256, 160, 320, 32, 128, 128),
    "inception_5b": Inception(384, 192, 384, 48, 128, 128),
}
AUX_HEADS = {"inception_4a": "aux1", "inception_4d": "aux2"}  # the module whose output each head reads


class InceptionModule(nn.Module):
    """Four parallel branches, concatenated (Szegedy et al. 2015, figure 2b).

    Attributes:
      table: the module's row of Table 1.
      reductions: 1x1 convolutions before the 3x3 and 5x5 ones. Without them, the naive module (figure 2a), except that
        the pool's projection stays: with it gone as well, the depth would grow by its input's at every module.
      kernel_3x3: side of the second branch's kernel: 3, or 1 as in a tutorial (see `configs/studies`).
      kernel_5x5: side of the third branch's kernel: 5, or 3 as in torchvision, or 1.
      residual: "none"; "identity" adds the input if it has the output's shape; "projection" always adds it,
        through a 1x1 convolution without activation where the shapes differ (He et al. 2016, option B). The input is
        added to the concatenated, activated branches.
      conv: makes the convolution units: ConvUnit, given the network's options.
    """

    table: Inception
    reductions: bool = True
    kernel_3x3: int = 3
    kernel_5x5: int = 5
    residual: str = "none"
    conv: Callable[..., ConvUnit] = ConvUnit

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height, width, sum of the branches' channels)."""
        conv, table, side_3x3, side_5x5 = self.conv, self.table, self.kernel_3x3, self.kernel_5x5
        if self.reductions:
            siblings = [
                conv(table.conv_1x1, name="conv_1x1"),
                conv(table.conv_3x3_reduce, name="conv_3x3_reduce"),
                conv(table.conv_5x5_reduce, name="conv_5x5_reduce"),
            ]
            branch_1x1, branch_3x3, branch_5x5 = apply_siblings(siblings, x, train)
        else:
            branch_1x1, branch_3x3, branch_5x5 = conv(table.conv_1x1, name="conv_1x1")(x, train), x, x
        branch_3x3 = conv(table.conv_3x3, (side_3x3, side_3x3), name="conv_3x3")(branch_3x3, train)
        branch_5x5 = conv(table.conv_5x5, (side_5x5, side_5x5), name="conv_5x5")(branch_5x5, train)
        branch_pool = ops.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        branch_pool = conv(table.pool_proj, name="pool_proj")(branch_pool, train)
        y = jnp.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool], axis=-1)
        if self.residual == "none":
            return y
        if x.shape == y.shape:
            return y + x
        if self.residual == "projection":
            return y + conv(y.shape[-1], activation=None, name="projection")(x, train)
        return y


class AuxHead(nn.Module):
    """An auxiliary classifier (Szegedy et al. 2015, section 5): pooling, 1x1 convolution, two dense layers.

    Attributes:
      pool: "adaptive" averages to 4x4 maps, as in torchvision; "paper" averages 5x5 windows at stride 3 without
        padding, which gives 4x4 on the paper's 14x14 maps.
      conv: makes the convolution unit.
      dense: makes the dense layers.
    """

    num_classes: int
    pool: str = "adaptive"
    dropout_rate: float = 0.7
    conv: Callable[..., ConvUnit] = ConvUnit
    dense: Callable[..., nn.Dense] = nn.Dense

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to logits (batch, num_classes)."""
        if self.pool == "adaptive":
            x = ops.adaptive_avg_pool(x, (4, 4))
        elif min(x.shape[1:3]) < 5:
            raise UserError(
                f"aux_pool='paper' averages 5x5 windows, but the map is {x.shape[1]}x{x.shape[2]}: "
                "use larger ones, or aux_pool='adaptive'"
            )
        else:
            x = ops.avg_pool(x, (5, 5), (3, 3), "VALID")
        x = self.conv(128, name="conv")(x, train)
        x = nn.relu(self.dense(1024, name="fc1")(x.reshape(x.shape[0], -1)))
        x = dropout(x, self.dropout_rate, train=train)
        return self.dense(self.num_classes, name="fc2")(x)


class GoogLeNet(Network):
    """GoogLeNet (Szegedy et al. 2015, Table 1), with the departures of its descendants as named options.

    Parameters at 1000 classes: 6,998,552 as in the paper, 13,378,280 with both auxiliary heads; 7,005,832 with batch
    norm; 6,624,904 and 13,004,888 with batch norm and 3x3 kernels, where the logits are torchvision's.

    norm="stem" is the network of a course's slides that were trained on UC Merced at 256 pixels ("GoogLeNet - Inception
    Architecture", SS 2022). They print 512 non-trainable parameters, which are the running means and variances of 64 +
    192 channels: batch norm in place of the paper's two local response norms, and nowhere else. Their total of
    8,222,063 parameters cannot be derived: with the body of Table 1, no shape of the heads gives it.

    Attributes:
      norm: "lrn", two local response norms in the stem, as in the paper; "batch" after every convolution (Ioffe &
        Szegedy 2015), which then has no bias; "stem", batch norm in place of the two local response norms; "none".
      norm_epsilon: of batch norm: 1e-3 as in torchvision.
      reductions: False: the naive modules, see InceptionModule.
      kernel_3x3: side of the second branch's kernels: 3 or 1.
      kernel_5x5: side of the third branch's kernels: 5, or 3 as in torchvision, or 1.
      pool_padding: of the max pools that halve the map: "ceil", whose windows reach past the end as in Caffe and
        PyTorch's ceil mode, or "valid", whose windows do not.
      pool_4: side of the last max pool's window: 3 as in Table 1, or 2 as in torchvision. None: 2 with kernel_5x5=3,
        which alone then gives torchvision's network, else 3.
      aux_heads: whether there are two auxiliary classifiers, after inception_4a and inception_4d.
      aux_pool: "adaptive" or "paper", see AuxHead.
      residual: "none", "identity" or "projection", see InceptionModule.
      stem: "imagenet", Table 1's, divides the map by 8; "small", one 3x3 convolution at stride 1, the usual choice
        for CIFAR; "small_pooled", Table 1's with a 3x3 first convolution at stride 1, divides it by 4 and
        costs a sixteenth of "small" in the body.
      dropout_rate: before the classifier: 0.4 in the paper, 0.2 in torchvision.
      initializer: a name from layers.INITIALIZERS, or "paper": the paper names none, so torchvision's.
    """

    num_classes: int
    norm: str = "batch"
    norm_epsilon: float = 1e-3
    reductions: bool = True
    kernel_3x3: int = 3
    kernel_5x5: int = 5
    pool_padding: str = "ceil"
    pool_4: int | None = None
    aux_heads: bool = False
    aux_pool: str = "adaptive"
    residual: str = "none"
    stem: str = "imagenet"
    dropout_rate: float = 0.4
    aux_dropout_rate: float = 0.7
    initializer: str = "he_normal"

    image_sizes: ClassVar = {"imagenet": (224, 1), "small": (32, 1), "small_pooled": (32, 1)}

    @property
    def min_image_size(self) -> int:
        """Side of the smallest images that it accepts, pixels."""
        smallest = super().min_image_size
        if not (self.aux_heads and self.aux_pool == "paper"):
            return smallest
        side = 5  # of the maps behind inception_4a
        for _ in range(1 if self.stem == "small" else 3):  # the pools of 3 pixels at stride 2 before it
            side = 2 * side + (self.pool_padding == "valid")
        return 2 * side - 1 if self.stem == "imagenet" else side

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        check_choice("kernel_3x3", self.kernel_3x3, (1, 3))
        check_choice("kernel_5x5", self.kernel_5x5, (1, 3, 5))
        check_choice("pool_padding", self.pool_padding, ("ceil", "valid"))
        check_choice("pool_4", self.pool_4, (None, 2, 3))
        check_choice("aux_pool", self.aux_pool, ("adaptive", "paper"))
        check_choice("residual", self.residual, ("none", "identity", "projection"))
        check_image_size(images, self.min_image_size, "a stem that shrinks them less, or aux_pool='adaptive'")
        conv, dense = make_units(self, images, paper="truncated_normal", norms=(*NORMS, "stem"))
        pool_4 = self.pool_4 or (2 if self.kernel_5x5 == 3 else 3)
        windows = {"pool_3": 3, "pool_4": pool_4}
        module = partial(
            InceptionModule,
            reductions=self.reductions,
            kernel_3x3=self.kernel_3x3,
            kernel_5x5=self.kernel_5x5,
            residual=self.residual,
            conv=conv,
        )
        aux = {}
        x = self._stem(images, train, conv)
        for name, row in TABLE_1.items():
            x = self._halve(x, name, windows[name]) if isinstance(row, str) else module(row, name=name)(x, train)
            if self.aux_heads and name in AUX_HEADS:
                head = AuxHead(
                    self.num_classes, self.aux_pool, self.aux_dropout_rate, conv, dense, name=AUX_HEADS[name]
                )
                aux[AUX_HEADS[name]] = at_least_float32(head(x, train))
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train), aux)

    def _stem(self, x: jax.Array, train: bool, conv) -> jax.Array:
        if self.stem == "small":
            if self.norm == "stem":
                raise UserError("norm='stem' needs the two norms of stem='imagenet' or 'small_pooled'")
            return conv(192, (3, 3), name="conv1")(x, train)
        if self.stem == "imagenet":
            # Symmetric padding as in PyTorch; SAME would pad 2 before and 3 after.
            x = conv(64, (7, 7), (2, 2), ((3, 3), (3, 3)), name="conv1")(x, train)
        else:
            x = conv(64, (3, 3), name="conv1")(x, train)
        x = self._normalize(self._halve(x, "pool_1"), "norm1", train)
        x = conv(64, name="conv2")(x, train)
        x = self._normalize(conv(192, (3, 3), name="conv3")(x, train), "norm2", train)
        return self._halve(x, "pool_2")

    def _normalize(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """The normalization where Table 1 has a local response norm: none if every unit has batch norm."""
        if self.norm == "lrn":
            return ops.local_response_norm(x)
        if self.norm == "stem":
            return BatchNorm(self.norm_epsilon, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x, train)
        return x

    def _halve(self, x: jax.Array, name: str, side: int = 3) -> jax.Array:
        # SAME would differ at odd maps. On maps smaller than the window, which Table 1 has no need of, the window is
        # the map.
        window = (min(side, x.shape[1]), min(side, x.shape[2]))
        return MaxPool(window, ceil_mode=self.pool_padding == "ceil", name=name)(x)
