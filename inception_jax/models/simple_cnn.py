"""A sequential baseline: stacked convolutions, then pooling."""

from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax.errors import UserError
from inception_jax.models.layers import NORMS, MaxPool, Network, Outputs, classify, make_units


class SimpleCNN(Network):
    """Two 3x3 convolutions and a 2x2 max pool a stage, then the mean over the map and one dense layer.

    It stands for the sequential baseline of Mahmud's GoogLeNet replication on an ImageNet subset, whose text gives
    stacked convolutions followed by pooling with 32 to 256 filters; its exact figure is lost, so the number of stages
    (one a filter count), two convolutions in each and the classifier are ours. 1,174,826 parameters for color images
    of 10 classes without norm.

    Attributes:
      stage_features: filters of each stage; the map halves after each.
      norm: "none" as in the baseline, or "batch".
      initializer: a name from layers.INITIALIZERS, or "paper": Keras's default, "glorot_uniform".
    """

    num_classes: int
    stage_features: tuple[int, ...] = (32, 64, 128, 256)
    norm: str = "none"
    norm_epsilon: float = 1e-3
    dropout_rate: float = 0.5
    initializer: str = "he_normal"

    image_sizes: ClassVar = {None: (224, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        if not self.stage_features or min(self.stage_features) < 1:
            raise UserError(
                f"stage_features={self.stage_features} is not allowed: it must be positive numbers of filters"
            )
        conv, dense = make_units(self, images, paper="glorot_uniform", norms=NORMS)
        x = images
        for stage, features in enumerate(self.stage_features, start=1):
            for index in (1, 2):
                x = conv(features, (3, 3), name=f"conv{stage}_{index}")(x, train)
            x = MaxPool((2, 2), ceil_mode=True, name=f"pool{stage}")(x)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
