"""A small Inception network for images of 32x32 pixels, designed to train in minutes on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.errors import UserError
from inception_jax.models.initializers import identity_first
from inception_jax.models.layers import (
    BatchNorm,
    Dtype,
    MaxPool,
    Network,
    Outputs,
    at_least_float32,
    initializer_name,
    make_units,
)

# The sums and differences of the pixels of a 2x2 square; in natural images they are nearly uncorrelated.
_SQUARES = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2
# The same of colors: gray, blue against yellow, red against green.
_COLORS = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_BIAS_FACTOR = 8.0
_LOGIT_SCALE = 1 / 9


class SmallInception(Network):
    """Three stages of a 3x3 convolution, a 2x2 max pool and an Inception module, after whitened 2x2 squares.

    The plan is airbench94's (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3): fixed first
    filters that whiten the image, both signs of each; two convolutions in each of three stages, the pool right after
    the first one, batch norm and GELU after both; kernels that start as the identity as far as their shapes allow;
    biases that learn 64 times as fast; the maximum over the last maps; logits divided by 9. What differs: the first
    filters are the same for all data (sums and differences of pixels and of colors, which batch norm scales to variance
    1), batch norm has scales, and the second convolution is an Inception module without reductions, of 1x1 and 3x3
    kernels as in the small Inception of Zhang et al. 2017 (appendix A), which saves a fifth of its computation.
    1,702,154 parameters for color images of 10 classes.

    Attributes:
      stage_features: channels of each stage, of which a quarter come from the Inception module's 1x1 kernels.
      norm_epsilon: of batch norm.
      initializer: a name from layers.INITIALIZERS, or "paper", which is "he_normal", for what does not start as the
        identity.
    """

    num_classes: int
    stage_features: tuple[int, ...] = (64, 256, 256)
    norm_epsilon: float = 1e-3
    initializer: str = "he_normal"

    image_sizes: ClassVar = {None: (32, 2)}

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Outputs:
        """Images (batch, height, width, channels), normalized, to Outputs; raises as `Network` says."""
        if not self.stage_features or any(features < 4 or features % 4 for features in self.stage_features):
            raise UserError(f"stage_features={self.stage_features} is not allowed: it must be multiples of 4")
        _, dense = make_units(self, images, paper="he_normal")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=identity_first(initializer_name(self.initializer, "he_normal")),
            conv_general_dilated=lax.conv_general_dilated if self.is_initializing() else ops.conv_general_dilated,
            **types,
        )
        norm = partial(BatchNorm, self.norm_epsilon, bias_factor=_BIAS_FACTOR, **types)
        x = _Whiten(self.norm_epsilon, self.dtype, name="whiten")(images, train)
        for stage, features in enumerate(self.stage_features, start=1):
            x = conv(features, (3, 3), padding=1, name=f"conv{stage}")(x)
            x = MaxPool((2, 2), name=f"pool{stage}")(x) if min(x.shape[1:3]) > 1 else x
            x = norm(name=f"norm{stage}")(x, train)
            x = _Module(features, conv, norm, name=f"inception{stage}")(ops.alone(nn.gelu(x)), train)
        x = x.max(axis=(1, 2))
        logits = dense(self.num_classes, name="fc")(x)
        return Outputs(at_least_float32(logits) * _LOGIT_SCALE)


class _Module(nn.Module):
    """A 1x1 and a 3x3 convolution of the same maps, with a quarter and three quarters of the features, concatenated."""

    features: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height, width, features)."""
        quarter = self.features // 4
        branch_1x1 = self.conv(quarter, (1, 1), padding=0, name="conv_1x1")(x)
        branch_3x3 = self.conv(self.features - quarter, (3, 3), padding=1, name="conv_3x3")(x)
        x = jnp.concatenate([branch_1x1, branch_3x3], axis=-1)
        return ops.alone(nn.gelu(self.norm(name="norm")(x, train)))


class _Whiten(nn.Module):
    """Sums and differences of the pixels of all 2x2 squares, each with variance 1, and their negatives.

    It has no parameters, and no gradient passes through it.
    """

    epsilon: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height - 1, width - 1, 8 * channels)."""
        channels = images.shape[-1]
        colors = _COLORS if channels == 3 else np.eye(channels)
        kernel = np.einsum("fyx,gc->yxcfg", _SQUARES, colors).reshape(2, 2, channels, 4 * channels)
        # In the images' own type: bfloat16 is too coarse for differences of pixels that are nearly equal.
        x = ops.conv(images, jnp.asarray(kernel, images.dtype), padding="VALID")
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=self.epsilon,
            use_scale=False,
            use_bias=False,
            name="norm",
        )(x)
        x = nn.relu(jnp.concatenate([x, -x], axis=-1))
        return lax.stop_gradient(x.astype(self.dtype or x.dtype))
