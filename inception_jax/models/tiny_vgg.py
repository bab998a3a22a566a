"""Small VGGs for Tiny ImageNet, from Tables 1 and 2 of Skagerström, Price & Lindqvist 2018, "Classification of
ImageNet with convolutional neural networks" (KTH, project in DD2424)."""

from typing import ClassVar, NamedTuple

import jax
from flax import linen as nn

from inception_jax import ops
from inception_jax.models.layers import BatchNorm, MaxPool, Network, Outputs, classify, dropout, make_units

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
      dropout_after_each: whether there is as much dropout after each of the dense layers before it.
    """

    initializer: str
    batch_norm: bool
    dense: tuple[int, ...]
    dropout_rate: float
    dropout_after_each: bool = False


TABLES: dict[str, Configuration] = {
    "A": Configuration("glorot_uniform", False, (2048,), 0.0),
    "B": Configuration("glorot_uniform", True, (2048,), 0.0),
    "C": Configuration("glorot_uniform", False, (2048,), 0.3),
    "D": Configuration("he_normal", True, (2048,), 0.3),
    "E": Configuration("he_normal", True, (4096, 4096, 4096), 0.0),
    "F": Configuration("he_normal", True, (), 0.0),
}
# The experiment between D and E (section 4.1, figure 5), for which there is no table: D with three dense layers, in
# which dropout is 70 %, and L2 of 1e-3 on every layer. Three before the classifier, as in E, of D's width.
D_REGULARIZED = Configuration("he_normal", True, (2048, 2048, 2048), 0.7, dropout_after_each=True)


class TinyVGG(Network):
    """The networks A to F: nine convolutions of at most 2x2 pixels in three stages, then dense layers.

    Parameters at 200 classes: 10,993,704 (A, C); 10,998,760 (B, D); 55,479,272 (E); 1,121,256 (F); 19,399,656 of
    D_REGULARIZED, the source's experiment between D and E. As printed, and as
    Keras orders layers, batch norm follows the ReLU, and the layers before it keep their biases. There it cannot be
    folded into the kernels before it, nor, because of the padding, into those after it, so `fold_batch_norm` returns
    these networks unchanged. The tables do not state the padding: maps keep their size, as VGG's do, and kernels of two
    pixels are padded at the end, as in Keras. Submodules: `conv1_1`, `conv1_1_norm`, `conv1_2` and so on, `pool1` to
    `pool3`, `fc1`, `fc1_norm` and so on, `fc`.

    Attributes:
      configuration: in what they differ.
      norm_epsilon: of batch norm: 1e-3 as in Keras.
      dropout_rate: of the dropout that the configuration has; None: the configuration's.
      initializer: a name from layers.INITIALIZERS, or "paper", the configuration's.
    """

    configuration: Configuration
    num_classes: int
    norm_epsilon: float = 1e-3
    dropout_rate: float | None = None
    initializer: str = "paper"

    image_sizes: ClassVar = {None: (64, 8)}  # three pools reduce 8 pixels to one

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says.

        Maps of images of other sizes than 64x64 are pooled adaptively to 8x8 before the first dense layer.
        """
        table = self.configuration
        conv, dense = make_units(self, images, paper=table.initializer)

        def norm(x: jax.Array, name: str) -> jax.Array:
            if not table.batch_norm:
                return x
            types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            return BatchNorm(self.norm_epsilon, name=name, **types)(x, train)

        x = images
        for stage, convolutions in enumerate(STAGES, start=1):
            for index, (features, kernel_size) in enumerate(convolutions, start=1):
                name = f"conv{stage}_{index}"
                x = norm(conv(features, kernel_size, name=name)(x, train), f"{name}_norm")
            x = MaxPool((2, 2), name=f"pool{stage}")(x)
        dropout_rate = table.dropout_rate if self.dropout_rate is None else self.dropout_rate
        x = ops.adaptive_avg_pool(x, (8, 8)).reshape(x.shape[0], -1)
        for index, features in enumerate(table.dense, start=1):
            if index > 1 and table.dropout_after_each:
                x = dropout(x, dropout_rate, train=train)
            name = f"fc{index}"
            x = norm(nn.relu(dense(features, name=name)(x)), f"{name}_norm")
        return Outputs(classify(x, dense, self.num_classes, dropout_rate, train=train))
