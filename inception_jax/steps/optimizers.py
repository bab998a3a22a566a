"""Optimizers as Optax chains: clipping, coupled decay, the rule itself, decoupled decay, and the learning rate last.

Because the learning rate (lr) comes after momentum, a change of lr immediately scales the whole update, as in PyTorch,
and a train step may scale the updates further (`schedules.PlateauState`).
"""

import fnmatch
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, ScalarLike

from inception_jax.errors import UserError, check_choice, unknown_name

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "rmsprop_tensorflow")
WEIGHT_DECAY_MODES = ("coupled", "decoupled")


def make_optimizer(
    name: str,
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    decay: float = 0.9,
    epsilon: float = 1e-8,
    centered: bool = False,
    weight_decay: float = 0.0,
    weight_decay_mode: str = "coupled",
    weight_decay_layers: Sequence[str] = (),
    clip_norm: float = 0.0,
    trunk: Callable[[PyTree], PyTree[bool]] | None = None,
    trunk_rate: float = 1.0,
    frozen_updates: int = 0,
    own: optax.GradientTransformation | None = None,
    has_rate: bool = False,
) -> optax.GradientTransformation:
    """The optimizer of this name, equivalent to the one in `torch.optim`; options that it does not have are ignored.

    - `sgd`: `momentum`, `nesterov`
    - `adam`: `beta1`, `beta2`, `epsilon` (Kingma and Ba 2015)
    - `adamw`: the same, always with decoupled decay, regardless of `weight_decay_mode` (Loshchilov and Hutter 2019)
    - `rmsprop`: `decay` (PyTorch's alpha) of the moving average of squared gradients, which starts from zero; `epsilon`
      is added to its root; `centered` subtracts the square of the mean gradient; momentum is applied after the division
    - `rmsprop_tensorflow`: TensorFlow's RMSPropOptimizer, which trained Inception v3 (Szegedy et al. 2016,
      section 8, with decay 0.9 and epsilon 1.0): the average starts from one, and `epsilon` is added under the root.
      TensorFlow's momentum accumulates updates already multiplied by their lr; here the lr is applied last, so the two
      differ after a change of lr until the momentum has forgotten it.

    Args:
      schedule: the lr, or a function from the number of updates made to the lr
      weight_decay: for parameters whose path ends in "kernel": biases and norms are not decayed
      weight_decay_mode: "coupled" adds `weight_decay * kernel` to the gradient (L2), "decoupled" to the update
        after the rule, before the lr
      weight_decay_layers: shell patterns; only kernels whose layer, or a module that contains it, has a path that
        matches one are decayed: "fc?" is fc1 to fc9, "inception_3a" that module's convolutions, "*/conv_3x3" that
        convolution of every module. Empty: all kernels
      clip_norm: maximum global norm of the gradients, applied before anything else, as in
        `torch.nn.utils.clip_grad_norm_`; 0: no clipping
      trunk: parameters -> a tree of the same structure, True for pretrained ones
      trunk_rate: factor on the lr for the trunk
      frozen_updates: number of updates that leave the trunk unchanged; its momentum and decay begin afterwards, and
        until then its gradients do not count for clipping; impossible with a rule that applies the lr itself, whose
        schedule would begin afterwards, too
      own: the rule itself, in place of the one of this name
      has_rate: whether it applies the lr itself

    Raises:
      UserError: an unknown name or mode; Nesterov momentum without momentum; decoupled decay or frozen updates with a
        rule that applies the lr itself; and when the state is made, one of `weight_decay_layers` that matches no layer
        with a kernel.
    """
    check_choice("weight decay mode", weight_decay_mode, WEIGHT_DECAY_MODES)
    if has_rate:
        _check_has_rate(name, weight_decay and weight_decay_mode == "decoupled", trunk is not None and frozen_updates)
    rule = own or _make_rule(name, momentum, nesterov, beta1, beta2, decay, epsilon, centered)
    if weight_decay:
        added = optax.add_decayed_weights(weight_decay, mask=partial(kernels, layers=weight_decay_layers))
        decoupled = weight_decay_mode == "decoupled" or name == "adamw"
        rule = optax.chain(rule, added) if decoupled else optax.chain(added, rule)
    clip = [clip_by_global_norm(clip_norm)] if clip_norm else []
    if trunk is not None and frozen_updates:
        rule = _begin_trunk_at(frozen_updates, rule, trunk)
        if clip:
            clip = [_begin_trunk_at(frozen_updates, optax.identity(), trunk), *clip]
    if trunk is not None and trunk_rate != 1:
        rule = optax.chain(rule, optax.masked(optax.scale(trunk_rate), trunk))
    rate = [] if has_rate else [optax.scale_by_learning_rate(schedule)]
    optimizer = optax.chain(*clip, rule, *rate)

    def init(params):
        _check_layers(params, weight_decay_layers)  # here, since a mask may be given a part of the parameters
        return optimizer.init(params)

    return optimizer._replace(init=init)


def _check_has_rate(name: str, decoupled: float, frozen: int) -> None:
    """Raises UserError for what cannot be added to a rule that applies the lr itself."""
    excluded = {"weight_decay_mode='decoupled'": decoupled, "finetune.freeze_epochs": frozen}
    for what, wanted in excluded.items():
        if wanted:
            raise UserError(
                f"{what} is not possible with optimizer {name!r}, which applies the learning rate itself: choose one "
                "without an argument learning_rate, such as optax.scale_by_adam"
            )


def _make_rule(
    name: str,
    momentum: float,
    nesterov: bool,
    beta1: float,
    beta2: float,
    decay: float,
    epsilon: float,
    centered: bool,
) -> optax.GradientTransformation:
    """The optimizer without weight decay, clipping and lr; see `make_optimizer`."""
    accumulate = optax.trace(momentum) if momentum else optax.identity()
    average = optax.scale_by_stddev if centered else optax.scale_by_rms
    if name == "sgd":
        if nesterov and not momentum:
            raise UserError("nesterov=True needs momentum, which is 0: set momentum, 0.9 for example")
        return optax.trace(momentum, nesterov) if momentum else optax.identity()
    if name in ("adam", "adamw"):
        return optax.scale_by_adam(beta1, beta2, epsilon)
    if name == "rmsprop":
        return optax.chain(average(decay, epsilon, eps_in_sqrt=False), accumulate)
    if name == "rmsprop_tensorflow":
        return optax.chain(average(decay, epsilon, initial_scale=1.0, eps_in_sqrt=True), accumulate)
    raise unknown_name("optimizer", name, OPTIMIZERS)


def _begin_trunk_at(
    updates: int, rule: optax.GradientTransformation, trunk: Callable[[PyTree], PyTree[bool]]
) -> optax.GradientTransformation:
    """The rule, with updates and state of the trunk starting after a number of updates; before, they are 0."""
    later = optax.conditionally_mask(rule, lambda step, **_: jnp.asarray(step) >= updates)
    return optax.partition({True: later, False: rule}, trunk)


def kernels(params: PyTree, layers: Sequence[str] = ()) -> PyTree[bool]:
    """A tree of the same structure: True if a leaf's path ends in "kernel".

    Args:
      layers: patterns, see `make_optimizer`; if there are any, True only in the layers that match one.
    """

    def is_chosen(path: tuple, _: Any) -> bool:
        layer = _layer_of_kernel(path)
        return layer is not None and (not layers or any(_matches(layer, pattern) for pattern in layers))

    return jax.tree_util.tree_map_with_path(is_chosen, params)


def _layer_of_kernel(path: tuple) -> str | None:
    """The path of the layer whose kernel has this path, such as "inception_3a/conv_1x1/conv"; None for other leaves."""
    layer, _, leaf = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
    return layer if leaf == "kernel" else None


def _matches(layer: str, pattern: str) -> bool:
    names = layer.split("/")
    return any(fnmatch.fnmatchcase("/".join(names[:depth]), pattern) for depth in range(1, len(names) + 1))


def _check_layers(params: PyTree, patterns: Sequence[str]) -> None:
    """Raises UserError if one of the patterns matches no layer with a kernel."""
    layers = [_layer_of_kernel(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    known = [layer for layer in layers if layer is not None]
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in known):
            raise unknown_name("layer in weight_decay_layers", pattern, known)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by `max_norm / (norm + 1e-6)` if that is less than 1.

    The arithmetic of `torch.nn.utils.clip_grad_norm_`; `optax.clip_by_global_norm` has no 1e-6.
    """

    def clip(gradients, params):
        del params
        scale = jnp.minimum(max_norm / (optax.tree.norm(gradients) + 1e-6), 1.0)
        return jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def moving_average(average: PyTree, new: PyTree, decay: ScalarLike, num_updates: ScalarLike) -> PyTree:
    """`d * average + (1 - d) * new`, leaf by leaf, in the leaves' own precision.

    d is the minimum of `decay` and (1 + num_updates) / (10 + num_updates), with num_updates the number of earlier
    updates: otherwise the random initial weights would remain in the average for thousands of steps. Inception's
    released weights were averaged this way (Abadi et al. 2016, TensorFlow's ExponentialMovingAverage).

    Written as a step from the average towards the new value, so that a constant value is kept exactly.
    """
    share = jnp.maximum(1.0 - decay, 9 / (10 + jnp.asarray(num_updates, float)))
    return jax.tree.map(lambda old, value: old + share.astype(old.dtype) * (value - old), average, new)
