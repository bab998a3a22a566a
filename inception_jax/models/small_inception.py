"""A small Inception network for pictures of 32x32 pixels, made for training in minutes on a CPU."""

from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.errors import UserError
from inception_jax.models.initializers import INITIALIZERS, identity_first
from inception_jax.models.layers import (
    BatchNorm,
    Dtype,
    MaxPool,
    Outputs,
    at_least_float32,
    check_image_size,
    check_norm_epsilon,
    initializer_name,
)

# The sums and differences of the pixels of a 2x2 square; of natural images they are nearly uncorrelated.
_SQUARES = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2
# Grey, blue against yellow, red against green: the same of colours.
_COLORS = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_BIAS_FACTOR = 8.0
_LOGIT_SCALE = 1 / 9


class SmallInception(nn.Module):
    """Three stages of a 3x3 convolution, a 2x2 max pool and an Inception module, after whitened 2x2 squares.

    The plan is airbench94's (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3): fixed first
    filters that whiten the image, both signs of each; two convolutions in each of three stages, the pool right behind
    the first one, batch norm and GELU behind both; kernels that begin as the identity as far as they can; biases that
    learn 64 times as fast; the maximum over the last maps; logits divided by 9. Ours are the filters, which are the
    same for all data (sums and differences of pixels and of colours, whose variance batch norm makes 1), scales in
    batch norm, and an Inception module without reductions for the second convolution, of 1x1 and 3x3 kernels as in the
    small Inception of Zhang et al. 2017 (appendix A): a fifth less to compute there. 1,702,154 parameters for colour
    images of 10 classes.

    Attributes:
      stage_features: channels of each stage, of which a quarter come from the Inception module's 1x1 kernels.
      norm_epsilon: of batch norm.
      initializer: a name from layers.INITIALIZERS, or "paper", "he_normal": of what does not begin as the identity.
      dtype: of the computation; None: that of the inputs and parameters.
    """

    num_classes: int
    stage_features: tuple[int, ...] = (64, 256, 256)
    norm_epsilon: float = 1e-3
    initializer: str = "he_normal"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    native_image_size: ClassVar[int] = 32  # side of the images that the network is made for, pixels
    min_image_size: ClassVar[int] = 2  # side of the smallest images that it can take, pixels

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images (batch, height, width, channels), normalised, to Outputs.

        Raises:
          UserError: an option has a value that is not allowed, or the images are too small.
        """
        check_image_size(images, self.min_image_size)
        check_norm_epsilon(self.norm_epsilon)
        if not self.stage_features or any(features < 4 or features % 4 for features in self.stage_features):
            raise UserError(f"stage_features={self.stage_features} is not allowed: it must be multiples of 4")
        initializer = initializer_name(self.initializer, "he_normal")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = _Whiten(self.norm_epsilon, self.dtype, name="whiten")(images, train)
        for stage, features in enumerate(self.stage_features, start=1):
            x = _conv(self, features, 3, initializer, f"conv{stage}", types)(x)
            x = MaxPool((2, 2), name=f"pool{stage}")(x) if min(x.shape[1:3]) > 1 else x
            x = _norm(self.norm_epsilon, f"norm{stage}", types)(x, train)
            module = _Module(features, self.norm_epsilon, initializer, name=f"inception{stage}", **types)
            x = module(ops.alone(nn.gelu(x)), train)
        x = x.max(axis=(1, 2))
        logits = nn.Dense(self.num_classes, kernel_init=INITIALIZERS[initializer], name="fc", **types)(x)
        return Outputs(at_least_float32(logits) * _LOGIT_SCALE)


class _Module(nn.Module):
    """A 1x1 and a 3x3 convolution of the same maps, a quarter and three of the features, concatenated."""

    features: int
    norm_epsilon: float
    initializer: str
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height, width, features)."""
        types, quarter = {"dtype": self.dtype, "param_dtype": self.param_dtype}, self.features // 4
        branch_1x1 = _conv(self, quarter, 1, self.initializer, "conv_1x1", types)(x)
        branch_3x3 = _conv(self, self.features - quarter, 3, self.initializer, "conv_3x3", types)(x)
        x = jnp.concatenate([branch_1x1, branch_3x3], axis=-1)
        return ops.alone(nn.gelu(_norm(self.norm_epsilon, "norm", types)(x, train)))


def _conv(module: nn.Module, features: int, side: int, initializer: str, name: str, types: dict[str, Any]) -> nn.Conv:
    """A convolution within `module`, before batch norm, whose maps keep their size."""
    return nn.Conv(
        features,
        (side, side),
        padding=[(side // 2, side // 2)] * 2,
        use_bias=False,
        kernel_init=identity_first(initializer),
        conv_general_dilated=lax.conv_general_dilated if module.is_initializing() else ops.conv_general_dilated,
        name=name,
        **types,
    )


def _norm(epsilon: float, name: str, types: dict[str, Any]) -> BatchNorm:
    return BatchNorm(epsilon, bias_factor=_BIAS_FACTOR, name=name, **types)


class _Whiten(nn.Module):
    """Sums and differences of the pixels of all 2x2 squares, each with variance 1, and the same with the other sign.

    Nothing is learnt here, and no gradient goes through.
    """

    epsilon: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """(batch, height, width, channels) to (batch, height - 1, width - 1, 8 * channels)."""
        channels = images.shape[-1]
        colors = _COLORS if channels == 3 else np.eye(channels)
        kernel = np.einsum("fyx,gc->yxcfg", _SQUARES, colors).reshape(2, 2, channels, 4 * channels)
        # In the images' own type: bfloat16 has no digits for the differences of pixels that are nearly equal.
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
