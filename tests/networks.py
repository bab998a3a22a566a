"""What the tests of networks share, `from networks import shapes`: shapes, random weights, PyTorch's as ours."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import numpy as jnp

from inception_jax.errors import UserError
from inception_jax.models import create_model, fold_batch_norm
from inception_jax.models.folding import inference_variables
from inception_jax.models.layers import ConvUnit
from inception_jax.weights import from_state_dict, to_state_dict

# Networks of another registered one's blocks, and more of them: what is slow is tried with that one alone.
DEEPER = {
    "resnet34", "resnet101", "resnet152", "tiny_vgg_d_regularized", "vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn",
    "vgg19_bn",
}  # fmt: skip
# Fields of large networks for one module of each kind and narrow dense layers, where more of them show nothing new.
SHORTENED = {
    "inception_v4": {"repeats": (1, 1, 1)},
    "inception_resnet_v2": {"repeats": (1, 1, 2)},
    "resnet50": {"stage_sizes": (2, 1, 1, 1)},
    "vgg11": {"hidden_features": 64},
    "vgg11_bn": {"hidden_features": 64},
}
# For functions that are called once, and take longer to compile than to run.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


class OneBlock(nn.Module):
    """A network that is one block, with the fields that `fold_batch_norm` looks for; `block(conv=...)` makes it."""

    block: Any
    norm: str = "batch"
    norm_epsilon: float = 1e-3
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train):
        conv = partial(ConvUnit, norm=self.norm, norm_epsilon=self.norm_epsilon, dtype=self.dtype)
        return self.block(conv=conv, name="block")(x, train)


@cache
def shapes(name, size=224, channels=3, num_classes=1000, **options):
    """What `init_with_output` would return: outputs and variables as shapes, without computing them."""
    return module_shapes(create_model(name, num_classes=num_classes, **options), (2, size, size, channels))


def module_shapes(model, image_shape, **options):
    """The same of a module; `options` are `init_with_output`'s."""
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False, **options), images)


def count(variables) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def random_variables(abstract, seed=0):
    """Variables from NumPy, which is quicker than a compiled initialisation; variances are positive."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (generator.standard_normal(leaf.shape, np.float32) * np.sqrt(2 / fan_in)).astype(leaf.dtype)
        low, high = (0.5, 1.5) if name in ("var", "scale") else (-0.2, 0.2)
        return generator.uniform(low, high, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def assert_trains_and_evaluates(model, image_shape):
    """With random weights, and with dropout and auxiliary heads where the network has them:

    in training, logits and gradients of the sum of their squares are finite, every parameter has a gradient, and all
    statistics of batch norm move; in evaluation they stay, and bfloat16 changes the logits by less than 5 % (of
    the norm; 1.9 % is the most that was seen). Statistics are not fitted to the batch: a small one spans few directions
    and variances near zero make noise of rounding.
    """
    images = np.random.default_rng(0).standard_normal(image_shape, np.float32)
    variables = random_variables(module_shapes(model, image_shape)[1])
    params, statistics = variables["params"], variables.get("batch_stats", {})

    @quick_jit
    @partial(jax.grad, has_aux=True)
    def train(params, statistics, images):
        variables, rngs = {"params": params, "batch_stats": statistics}, {"dropout": jax.random.key(1)}
        outputs, state = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return sum(jnp.square(logits).sum() for logits in jax.tree.leaves(outputs)), (outputs, state)

    @partial(quick_jit, static_argnames="dtype")
    def evaluate(variables, images, dtype):
        return model.clone(dtype=dtype).apply(variables, images, train=False, mutable=["batch_stats"])

    with ThreadPoolExecutor() as pool:  # they compile side by side
        trained = pool.submit(train, params, statistics, images)
        evaluated = [pool.submit(evaluate, variables, images, dtype) for dtype in (None, jnp.bfloat16)]
    # As NumPy's arrays: an operation of JAX outside a program is compiled for each shape.
    gradients, (outputs, state) = jax.device_get(trained.result())
    (wanted, kept), (rounded, _) = (jax.device_get(future.result()) for future in evaluated)

    for path, leaf in jax.tree_util.tree_leaves_with_path((outputs, gradients)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    flat = flatten_dict(gradients)
    for path, gradient in flat.items():
        # What a bias adds before batch norm is taken away again.
        without_effect = path[-2:] == ("conv", "bias") and (*path[:-2], "norm", "bias") in flat
        assert without_effect or np.abs(gradient).max() > 0, path
    moved = jax.tree.map(lambda before, after: np.all(before != after), statistics, state.get("batch_stats", {}))
    assert all(jax.tree.leaves(moved)), moved
    jax.tree.map(np.testing.assert_array_equal, kept.get("batch_stats", {}), statistics)
    for ours, theirs in zip(jax.tree.leaves(rounded), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def randomize(peer):
    """Fills a PyTorch network so that activations neither vanish nor grow, and nothing is left at 0 or 1.

    It may be on PyTorch's "meta" device, where no time is spent on the values that it would begin with.
    """
    import torch

    peer.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    norms = [name for name, module in peer.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    positive = {f"{name}.{leaf}" for name in norms for leaf in ("weight", "running_var")}
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if value.ndim > 1:
                value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
            elif value.ndim == 1:
                value.uniform_(*((0.5, 1.5) if name in positive else (-0.2, 0.2)), generator=generator)
            else:
                value.zero_()  # the batches that batch norm has seen


def peer_variables(model, peer, format):
    """A PyTorch network's state as our variables, of its data type, by the package's own names.

    On the way back it must be what it was, every name of it: so the network loads it with strict=True.
    """
    state = {name: value.detach().numpy() for name, value in peer.state_dict().items()}
    model = model.clone(param_dtype=next(peer.parameters()).detach().numpy().dtype)
    with jax.enable_x64(True):  # for float64; nothing else changes
        variables = from_state_dict(model, state, format)
        written = to_state_dict(model, variables, format)
    assert written.keys() == state.keys()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[name], value, err_msg=name)
        assert (written[name].shape, written[name].dtype) == (value.shape, value.dtype), name
    return variables


def peer_logits(outputs):
    """A PyTorch network's logits by our names: "logits", and its auxiliary heads' where it returns them, too."""
    outputs = outputs._asdict() if isinstance(outputs, tuple) else {"logits": outputs}
    return {name.replace("aux_logits", "aux"): logits for name, logits in outputs.items()}


def assert_logits_equal(model, variables, peer, image_shape):
    """Those of the PyTorch network in evaluation, auxiliary heads' included, for its variables in ours.

    Flax refuses variables that are missing or of another shape, and `from_state_dict` those that are not the model's.
    """
    import torch

    images = np.random.default_rng(0).standard_normal(image_shape, np.float32)
    peer.eval()
    # The flag of the outermost module alone: torchvision's networks then return their auxiliary heads' logits, too.
    peer.training = getattr(model, "aux_heads", False)
    with torch.no_grad():
        expected = peer_logits(peer(torch.from_numpy(images.transpose(0, 3, 1, 2))))
    outputs = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    actual = {"logits": outputs.logits, **outputs.aux}
    assert actual.keys() == expected.keys()
    for name, logits in expected.items():
        np.testing.assert_allclose(actual[name], logits, rtol=0, atol=1e-4 * float(logits.abs().max()), err_msg=name)


def assert_gradients_equal(model, convert, peer, image_shape, tolerance=1e-8):
    """Logits, auxiliary heads' included, and by every parameter the gradient of the sum of their squares, in float64.

    The PyTorch network's are compared, which stays as it is; the statistics of batch norm are fixed. `convert(peer)`
    is its state as our variables, such as `partial(peer_variables, model, format="torchvision")`. The gradients, put
    where the parameters were, go through it as well. A leaf may be off by `tolerance` of its largest entry.
    """
    import torch

    peer = copy.deepcopy(peer).double().eval()
    peer.training = getattr(model, "aux_heads", False)  # see assert_logits_equal
    images = np.random.default_rng(0).standard_normal(image_shape)
    outputs = peer_logits(peer(torch.from_numpy(images.transpose(0, 3, 1, 2))))
    sum(logits.square().sum() for logits in outputs.values()).backward()
    gradients = copy.deepcopy(peer)
    for ours, theirs in zip(gradients.parameters(), peer.parameters(), strict=True):
        ours.data = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad

    def loss(params, rest):
        outputs = model.apply({**rest, "params": params}, images, train=False)
        heads = {"logits": outputs.logits, **outputs.aux}
        return sum(jnp.square(logits).sum() for logits in heads.values()), heads

    def assert_close(path, ours, theirs):
        assert ours.dtype == np.float64
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=where)

    with jax.enable_x64(True):
        variables = convert(peer)
        params = variables.pop("params")
        (_, heads), actual = quick_jit(jax.value_and_grad(loss, has_aux=True))(params, variables)
        heads, actual = jax.device_get((heads, actual))
        wanted = convert(gradients)["params"]
    expected = {name: logits.detach().numpy() for name, logits in outputs.items()}
    jax.tree_util.tree_map_with_path(assert_close, heads, expected)
    jax.tree_util.tree_map_with_path(assert_close, actual, wanted)


def sizes(model, size):
    """What the network's own submodules make of images of `size` pixels: name to (height, width, channels) or (k,)."""
    _, state = module_shapes(
        model, (2, size, size, 3), capture_intermediates=lambda module, _: len(module.path) == 1, mutable=True
    )
    results = {name: calls["__call__"] for name, calls in state["intermediates"].items() if "__call__" in calls}
    return {name: result.shape[1:] for name, (result,) in results.items() if not name.startswith("Dropout")}


def assert_smallest_image_is(model, size):
    """It is what the network says, works and leaves some pixels; one less is refused."""
    assert model.min_image_size == size
    assert all(min(shape) > 0 for shape in sizes(model, size).values())
    if size > 1:
        message = f"images of {size}x{size - 1} pixels are too small for this network: use at least {size}x{size}"
        with pytest.raises(UserError, match=message):
            module_shapes(model, (2, size, size - 1, 3))


def assert_folding_changes_nothing(model, image_shape):
    """`fold_batch_norm` leaves no statistics and the same logits, auxiliary heads' included; so do kernels transformed
    for inference."""
    images = np.random.default_rng(0).standard_normal(image_shape, np.float32)
    variables = random_variables(module_shapes(model, image_shape)[1])
    folded_model, folded = fold_batch_norm(model, variables)
    assert set(folded) == {"params"}
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, module_shapes(folded_model, image_shape)[1])
    prepared = inference_variables(model, variables)
    wanted, *results = (
        quick_jit(partial(m.apply, train=False))(v, images)
        for m, v in ((model, variables), (folded_model, folded), (folded_model, prepared))
    )
    for got in results:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), got, wanted)
