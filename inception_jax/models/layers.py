"""What all networks are made of: the output struct, the common fields, the convolution unit, pooling, the head."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.struct
import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.errors import UserError, check_choice
from inception_jax.models.initializers import INITIALIZERS

Dtype = Any
NORMS = ("lrn", "batch", "none")


@flax.struct.dataclass
class Outputs:
    """What every network returns.

    Attributes:
      logits: (batch, num_classes), at least float32.
      aux: the auxiliary heads' logits by name, each (batch, num_classes); empty without heads.
    """

    logits: jax.Array
    aux: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


def as_outputs(outputs: Any) -> Outputs:
    """A network's result as Outputs; a network from outside the package may return only its logits."""
    return outputs if isinstance(outputs, Outputs) else Outputs(outputs)


def initializer_name(name: str, paper: str) -> str:
    """`name`, or `paper`, the initializer of the network's paper, if the name is "paper".

    Raises:
      UserError: the name is unknown.
    """
    check_choice("initializer", name, ("paper", *INITIALIZERS))
    return paper if name == "paper" else name


def check_image_size(images: jax.Array, smallest: int, otherwise: str = "") -> None:
    """Raises UserError if images (batch, height, width, channels) have a side of less than `smallest` pixels.

    `otherwise` names another way out, for the message.
    """
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise UserError(
            f"images of {height}x{width} pixels are too small for this network: use at least {smallest}x{smallest}"
            + (otherwise and f", {otherwise}")
        )


def check_norm_epsilon(epsilon: float) -> None:
    """Raises UserError if batch norm's epsilon would turn constant maps into NaN, or all maps into 0."""
    if not 1e-12 <= epsilon <= 1:
        raise UserError(f"norm_epsilon={epsilon} is not allowed: it must be from 1e-12 to 1")


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with the variables of `flax.linen.BatchNorm`.

    In training it runs on `ops.batch_norm`.

    Attributes:
      relu: whether to apply a ReLU to the result.
      zero_init: whether the scales start at 0 instead of 1.
      bias_factor: factor of the parameter "bias"; under SGD the biases learn faster by its square.
      dtype: of the result; None: that of the inputs and parameters.
    """

    epsilon: float = 1e-3
    momentum: float = 0.9
    relu: bool = False
    zero_init: bool = False
    bias_factor: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(batch, ..., channels) to the same shape."""
        shape = x.shape[-1:]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, wide)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, wide)
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", scale_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        bias = bias if self.bias_factor == 1 else self.bias_factor * bias
        if train:
            (x,) = promote_dtype(x, dtype=self.dtype or jnp.result_type(x, scale))
            y, batch_mean, batch_variance = ops.batch_norm(x, scale, bias, self.epsilon, relu=self.relu)
            if not self.is_initializing():
                for average, new in ((mean, batch_mean), (variance, batch_variance)):
                    average.value = self.momentum * average.value + (1 - self.momentum) * new
            return y
        slope = lax.rsqrt(variance.value + self.epsilon) * scale
        y = (x - mean.value) * slope + bias
        return (nn.relu(y) if self.relu else y).astype(self.dtype or jnp.result_type(x, scale))


class ConvUnit(nn.Module):
    """Convolution, optional batch norm, ReLU: the unit that every network here is built from.

    A convolution before batch norm has no bias (Ioffe & Szegedy 2015, section 3.2). A variable "kernel" in the
    collection "transformed" saves work in inference, see `folding.inference_variables`.

    Attributes:
      padding: None pads half the kernel on every side, as PyTorch does; SAME is lopsided at stride 2.
      norm: "batch" for batch norm; "lrn" and "none" for a bias instead (local response norm is not part of the unit).
      use_bias: whether the convolution has a bias; None: only without batch norm.
      zero_init: whether batch norm's scales, and with them the unit's outputs, start at 0 instead of 1.
      dtype: of the computation; None: that of the inputs and parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: Sequence[tuple[int, int]] | str | None = None
    norm: str = "batch"
    use_bias: bool | None = None
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    initializer: str = "he_normal"
    norm_epsilon: float = 1e-3
    zero_init: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, convolved: jax.Array | None = None) -> jax.Array:
        """(batch, height, width, channels) to (batch, height', width', features).

        Args:
          convolved: the convolution of x without its bias, if it is already computed (see `apply_siblings`).
        """
        check_choice("norm", self.norm, NORMS)
        check_choice("initializer", self.initializer, tuple(INITIALIZERS))
        check_norm_epsilon(self.norm_epsilon)
        batch_norm = self.norm == "batch"
        padding = self.padding
        if padding is None:
            padding = [((size - 1) // 2, size // 2) for size in self.kernel_size]
        convolve = partial(ops.conv_general_dilated, transformed=self.get_variable("transformed", "kernel"))
        if self.is_initializing():  # only shapes matter here, and this is traced two to four times as fast
            convolve = lax.conv_general_dilated
        x = nn.Conv(
            self.features,
            self.kernel_size,
            self.strides,
            padding,
            use_bias=not batch_norm if self.use_bias is None else self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=INITIALIZERS[self.initializer],
            conv_general_dilated=convolve if convolved is None else lambda *_, **__: convolved,
            name="conv",
        )(x)
        activation = self.activation
        if batch_norm:
            x = BatchNorm(
                self.norm_epsilon,
                relu=activation is nn.relu,
                zero_init=self.zero_init,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="norm",
            )(x, train)
            activation = None if activation is nn.relu else activation
        return ops.alone(activation(x) if activation else x)


class Network(nn.Module, kw_only=True):
    """The fields and properties that all networks share.

    `__call__(images, *, train)` takes normalized images (batch, height, width, channels), returns Outputs, and raises
    UserError if a field has a value that is not allowed or the images are too small.

    Attributes:
      dtype: of the computation; None: that of the inputs and parameters.
      param_dtype: of the parameters.
      image_sizes: by the network's field `stem`, None for networks without one: the side of the images that it is made
        for and of the smallest that it accepts, pixels.
    """

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    image_sizes: ClassVar[Mapping[str | None, tuple[int, int]]]

    @property
    def native_image_size(self) -> int:
        """Side of the images that the network is made for, pixels."""
        return _image_sizes(self)[0]

    @property
    def min_image_size(self) -> int:
        """Side of the smallest images that it accepts, pixels."""
        return _image_sizes(self)[1]


def _image_sizes(network: Network) -> tuple[int, int]:
    stem = getattr(network, "stem", None)
    check_choice("stem", stem, tuple(network.image_sizes))
    return network.image_sizes[stem]


class Units(NamedTuple):
    """What a network makes its layers with: ConvUnit and `flax.linen.Dense`, each given the network's fields."""

    conv: Callable[..., ConvUnit]
    dense: Callable[..., nn.Dense]


def make_units(network: Network, images: jax.Array, *, paper: str, norms: Sequence[str] = ("batch", "none")) -> Units:
    """Checks the fields that networks share, and returns what to make the network's layers with.

    Args:
      images: (batch, height, width, channels).
      paper: the initializer that "paper" stands for.
      norms: what the network's field `norm` may be; a network without the field has "none". The units have no norm of
        their own for a value that is not in NORMS, which the network implements itself.

    Raises:
      UserError: the stem, norm, norm_epsilon or initializer is not allowed, or the images are too small.
    """
    check_image_size(images, network.min_image_size)
    norm = getattr(network, "norm", "none")
    check_choice("norm", norm, norms)
    check_norm_epsilon(network.norm_epsilon)
    initializer = initializer_name(network.initializer, paper)
    dtypes = {"dtype": network.dtype, "param_dtype": network.param_dtype}
    return Units(
        partial(
            ConvUnit,
            norm=norm if norm in NORMS else "none",
            norm_epsilon=network.norm_epsilon,
            initializer=initializer,
            **dtypes,
        ),
        partial(nn.Dense, kernel_init=INITIALIZERS[initializer], **dtypes),
    )


def apply_siblings(units: Sequence[ConvUnit], x: jax.Array, train: bool) -> list[jax.Array]:
    """The results of units with 1x1 kernels on the same maps; their convolutions run as one where that is faster.

    To be called inside the compact `__call__` of the module whose submodules the units are. Each unit keeps its own
    parameters.
    """
    if any(unit.is_initializing() for unit in units):
        return [unit(x, train) for unit in units]
    kernels = [unit.variables["params"]["conv"]["kernel"] for unit in units]
    inputs, *kernels = promote_dtype(x, *kernels, dtype=units[0].dtype)
    return [unit(x, train, y) for unit, y in zip(units, ops.sibling_convs(inputs, kernels), strict=True)]


class MaxPool(nn.Module):
    """`ops.max_pool` as a named step of a network. With ceil_mode, windows may reach past the end of the map."""

    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (2, 2)
    padding: Sequence[tuple[int, int]] | str = "VALID"
    ceil_mode: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) to (batch, height', width', channels)."""
        return ops.max_pool(x, self.window, self.strides, self.padding, ceil_mode=self.ceil_mode)


class GlobalAvgPool(nn.Module):
    """The mean over each map, as a named step of a network."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) to (batch, channels)."""
        return x.mean(axis=(1, 2))


def dropout(x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """Dropout as a step of a network's compact `__call__`.

    Raises:
      UserError: the rate is not between 0 and 1.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"dropout_rate={rate} is not allowed: it must be from 0 to 1")
    return nn.Dropout(rate, deterministic=not train)(x)


def classify(
    x: jax.Array, dense: Callable[..., nn.Dense], num_classes: int, dropout_rate: float, *, train: bool
) -> jax.Array:
    """The head of a network: maps (batch, height, width, channels) to logits (batch, num_classes).

    The mean over each map, dropout, and a dense layer made with `dense` (see `make_units`). Features (batch, channels)
    are not averaged. To be called inside a network's compact `__call__`, whose submodules `avg_pool` and `fc` become.

    Raises:
      UserError: dropout_rate is not between 0 and 1.
    """
    if x.ndim == 4:
        x = GlobalAvgPool(name="avg_pool")(x)
    x = dropout(x, dropout_rate, train=train)
    return at_least_float32(dense(num_classes, name="fc")(x))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Logits in a precision in which losses can be computed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
