"""Six small VGGs for Tiny ImageNet, from Tables 1 and 2 of Skagerström, Price & Lindqvist 2018, "Classification of
ImageNet with convolutional neural networks" (KTH, project in DD2424)."""

from functools import partial
from typing import ClassVar, NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.models.layers import (
    INITIALIZERS,
    BatchNorm,
    ConvUnit,
    Dtype,
    MaxPool,
    Outputs,
    check_image_size,
    check_norm_epsilon,
    classify,
    initializer_name,
)

# The convolutions that all six share, (filters, height and width of the kernel); a 2x2 max pool ends each stage.
STAGES: tuple[tuple[tuple[int, tuple[int, int]], ...], ...] = (
    ((32, (2, 2)), (32, (2, 1)), (32, (1, 2))),
    ((48, (2, 2)), (48, (2, 2)), (48, (2, 2))),
    ((80, (2, 2)), (80, (2, 2)), (80, (2, 2))),
)


class Configuration(NamedTuple):
    """A column of Tables 1 and 2, as far as it is about the network; L2 and the solver belong to the training.

    Attributes:
      initializer: "HEI" is He's. "RUI", in words a "random unit initialization", is nowhere explained; it is taken for
        Keras's default, Glorot's uniform. With Keras's RandomUniform, -0.05 to 0.05, the gradient of A's first kernel
        starts at 1e-5 of the kernel's norm, so that A, trained by SGD at 0.01, could not reach the printed 17 %.
      batch_norm: after the ReLU of every convolution and dense layer.
      dense: features of the dense layers before the classifier.
      dropout_rate: before the classifier.
    """

    initializer: str
    batch_norm: bool
    dense: tuple[int, ...]
    dropout_rate: float


TABLES: dict[str, Configuration] = {
    "A": Configuration("glorot_uniform", False, (2048,), 0.0),
    "B": Configuration("glorot_uniform", True, (2048,), 0.0),
    "C": Configuration("glorot_uniform", False, (2048,), 0.3),
    "D": Configuration("he_normal", True, (2048,), 0.3),
    "E": Configuration("he_normal", True, (4096, 4096, 4096), 0.0),
    "F": Configuration("he_normal", True, (), 0.0),
}


class TinyVGG(nn.Module):
    """The networks A to F: nine convolutions of at most 2x2 pixels in three stages, then dense layers.

    Parameters at 200 classes: 10,993,704 (A, C); 10,998,760 (B, D); 55,479,272 (E); 1,121,256 (F). As printed, and as
    Keras orders what it is given so, batch norm stands behind the ReLU, and layers before it keep their biases; there
    it cannot be folded into the kernels, and behind it the padding is in the way, so `fold_batch_norm` leaves these
    networks as they are. The tables do not state the padding: maps keep their size, as VGG's do, kernels of two pixels
    being padded behind, as in Keras. Submodules: `conv1_1`, `conv1_1_norm`, `conv1_2` and so on, `pool1` to `pool3`,
    `fc1`, `fc1_norm` and so on, `fc`.

    Attributes:
      configuration: what the six differ in.
      norm_epsilon: of batch norm: 1e-3 as Keras.
      dropout_rate: before the classifier; None: the configuration's.
      initializer: a name from layers.INITIALIZERS, or "paper", the configuration's.
      dtype: of the computation; None: that of the inputs and parameters.
    """

    configuration: Configuration
    num_classes: int
    norm_epsilon: float = 1e-3
    dropout_rate: float | None = None
    initializer: str = "paper"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    native_image_size: ClassVar[int] = 64  # side of the images that the network is made for, pixels
    min_image_size: ClassVar[int] = 8  # side of the smallest images that it can take, pixels: one after three pools

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalised, to Outputs.

        Maps of images of other sizes than 64x64 are averaged or spread to 8x8 before the first dense layer.

        Raises:
          UserError: an option has a value that is not allowed, or the images are too small.
        """
        check_image_size(images, self.min_image_size)
        check_norm_epsilon(self.norm_epsilon)
        table = self.configuration
        initializer = initializer_name(self.initializer, table.initializer)
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(x: jax.Array, name: str) -> jax.Array:
            if not table.batch_norm:
                return x
            return BatchNorm(self.norm_epsilon, name=name, **common)(x, train)

        conv = partial(ConvUnit, norm="none", initializer=initializer, **common)
        x = images
        for stage, convolutions in enumerate(STAGES, start=1):
            for index, (features, kernel_size) in enumerate(convolutions, start=1):
                name = f"conv{stage}_{index}"
                x = norm(conv(features, kernel_size, name=name)(x, train), f"{name}_norm")
            x = MaxPool((2, 2), name=f"pool{stage}")(x)
        x = ops.adaptive_avg_pool(x, (8, 8)).reshape(x.shape[0], -1)
        for index, features in enumerate(table.dense, start=1):
            name = f"fc{index}"
            dense = nn.Dense(features, kernel_init=INITIALIZERS[initializer], name=name, **common)
            x = norm(nn.relu(dense(x)), f"{name}_norm")
        dropout_rate = table.dropout_rate if self.dropout_rate is None else self.dropout_rate
        logits = classify(
            x, self.num_classes, train=train, dropout_rate=dropout_rate, initializer=initializer, **common
        )
        return Outputs(logits)
