"""A sequential baseline: stacked convolutions, then pooling."""

from typing import ClassVar

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax.errors import UserError
from inception_jax.models.layers import (
    ConvUnit,
    Dtype,
    MaxPool,
    Outputs,
    check_image_size,
    classify,
    initializer_name,
)


class SimpleCNN(nn.Module):
    """Two 3x3 convolutions and a 2x2 max pool a stage, then the mean over the map and one dense layer.

    It stands for the sequential baseline of Mahmud's GoogLeNet replication on an ImageNet subset, whose text gives
    stacked convolutions followed by pooling with 32 to 256 filters; its exact figure is lost, so the number of stages
    (one a filter count), two convolutions in each and the classifier are ours. 1,174,826 parameters for colour images
    of 10 classes without norm.

    Attributes:
      stage_features: filters of each stage; the map halves after each.
      norm: "none" as the baseline, or "batch".
      initializer: a name from layers.INITIALIZERS, or "paper": Keras's default, "glorot_uniform".
      dtype: of the computation; None: that of the inputs and parameters.
    """

    num_classes: int
    stage_features: tuple[int, ...] = (32, 64, 128, 256)
    norm: str = "none"
    norm_epsilon: float = 1e-3
    dropout_rate: float = 0.5
    initializer: str = "he_normal"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    native_image_size: ClassVar[int] = 224  # side of the images that the network is made for, pixels
    min_image_size: ClassVar[int] = 1  # side of the smallest images that it can take, pixels

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalised, to Outputs."""
        check_image_size(images, self.min_image_size)
        if not self.stage_features or min(self.stage_features) < 1:
            raise UserError(
                f"stage_features={self.stage_features} is not allowed: it must be numbers of filters from 1"
            )
        initializer = initializer_name(self.initializer, "glorot_uniform")
        x = images
        for stage, features in enumerate(self.stage_features, start=1):
            for index in (1, 2):
                x = ConvUnit(
                    features,
                    (3, 3),
                    norm=self.norm,
                    norm_epsilon=self.norm_epsilon,
                    initializer=initializer,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"conv{stage}_{index}",
                )(x, train)
            x = MaxPool((2, 2), ceil_mode=True, name=f"pool{stage}")(x)
        logits = classify(
            x,
            self.num_classes,
            train=train,
            dropout_rate=self.dropout_rate,
            initializer=initializer,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return Outputs(logits)
