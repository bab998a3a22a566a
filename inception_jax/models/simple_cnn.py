"""A sequential baseline: stacked convolutions, then pooling."""

from typing import ClassVar

import jax
from flax import linen as nn

from inception_jax.errors import UserError
from inception_jax.models.layers import NORMS, MaxPool, Network, Outputs, classify, make_units


class SimpleCNN(Network):
    """3x3 convolutions and a 2x2 max pool a stage, then the mean over the map and one dense layer.

    It stands for the sequential baseline of Mahmud's GoogLeNet replication on an ImageNet subset (2024, section 5.3),
    whose text gives stacked convolutions followed by pooling with 32 to 256 filters. Its figure 2, which shows the
    network, is lost, so the number of stages (one a filter count), of convolutions in each and the classifier are ours.
    1,174,826 parameters for color images of 10 classes without norm.

    At 224 pixels the defaults have 2.59 billion multiply-adds, 1.64 times GoogLeNet's 1.58 billion, while the source's
    network trains in 0.59 of GoogLeNet's time on its CPU (table 4: 42 and 71 minutes). stem="imagenet" with
    stage_convolutions=(2, 2, 3, 3) has 0.93 billion, 0.59 of GoogLeNet's, and 1,916,330 parameters. It is derived from
    the text: the network is GoogLeNet without the modules, hence GoogLeNet's first convolution, 7x7 at stride 2; and
    convolutions are stacked before each pool as in Simonyan & Zisserman (2015), hence the numbers of VGG-16's first
    four stages.

    Attributes:
      stage_features: filters of each stage; the map halves after each.
      norm: "none" as in the baseline, or "batch".
      initializer: a name from layers.INITIALIZERS, or "paper": Keras's default, "glorot_uniform".
      stage_convolutions: convolutions of each stage, as many numbers as stage_features; (): two in each.
      stem: "small": the first convolution is 3x3 at stride 1, as the others; "imagenet": 7x7 at stride 2.
    """

    num_classes: int
    stage_features: tuple[int, ...] = (32, 64, 128, 256)
    norm: str = "none"
    norm_epsilon: float = 1e-3
    dropout_rate: float = 0.5
    initializer: str = "he_normal"
    stage_convolutions: tuple[int, ...] = ()
    stem: str = "small"

    image_sizes: ClassVar = {"small": (224, 1), "imagenet": (224, 1)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        if not self.stage_features or min(self.stage_features) < 1:
            raise UserError(
                f"stage_features={self.stage_features} is not allowed: it must be positive numbers of filters"
            )
        stages = len(self.stage_features)
        numbers = self.stage_convolutions or (2,) * stages
        if len(numbers) != stages or min(numbers) < 1:
            raise UserError(
                f"stage_convolutions={numbers} is not allowed: it must be a positive number for each of {stages} stages"
            )
        conv, dense = make_units(self, images, paper="glorot_uniform", norms=NORMS)
        x = images
        for stage, (features, number) in enumerate(zip(self.stage_features, numbers, strict=True), start=1):
            for index in range(1, number + 1):
                first = stage == index == 1 and self.stem == "imagenet"
                shape = ((7, 7), (2, 2)) if first else ((3, 3), (1, 1))
                x = conv(features, *shape, name=f"conv{stage}_{index}")(x, train)
            x = MaxPool((2, 2), ceil_mode=True, name=f"pool{stage}")(x)
        return Outputs(classify(x, dense, self.num_classes, self.dropout_rate, train=train))
