"""Updates against torch.optim (and TensorFlow's RMSProp as documented), step by step, every option."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import shapes

from inception_jax.errors import UserError
from inception_jax.steps.optimizers import OPTIMIZERS, clip_by_global_norm, kernels, make_optimizer, moving_average
from inception_jax.steps.schedules import init_plateau, make_schedule, plateau_update

STEPS = 50
RATE = 0.01
SHAPES = {"conv": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,)}, "head": {"kernel": (4, 2), "bias": (2,)}}


def is_shape(value):
    return isinstance(value, tuple)


def draw(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(generator.standard_normal, SHAPES, is_leaf=is_shape)


# Gradients of changing size, so that clipping clips some of them; the same for both sides.
GRADIENTS = [jax.tree.map(lambda leaf, scale=scale: leaf * scale, draw(100 + i)) for i, scale in enumerate(
    np.random.default_rng(7).uniform(0.1, 2.0, STEPS))]  # fmt: skip


def our_params(optimizer, dtype, scales=None):
    """The parameters after each of STEPS updates, each times its scale."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draw(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradients, scale):
        updates, state = optimizer.update(gradients, state, params)
        updates = jax.tree.map(lambda update: update * scale.astype(dtype), updates)
        return optax.apply_updates(params, updates), state

    sequence = []
    for i, gradients in enumerate(GRADIENTS):
        gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), gradients)
        params, state = step(params, state, gradients, jnp.asarray(1.0 if scales is None else scales[i]))
        sequence.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
    assert jax.tree.leaves(params)[0].dtype == dtype
    return np.array(sequence)


def torch_params(make, rates, weight_decay=0.0, clip_norm=0.0):
    """The same in PyTorch, in double precision, with weight decay on the kernels alone."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    params = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(leaf)), draw(0))
    leaves, decayed = jax.tree.leaves(params), jax.tree.leaves(kernels(params))
    groups = [
        {"params": [leaf for leaf, kernel in zip(leaves, decayed, strict=True) if kernel]},
        {"params": [leaf for leaf, kernel in zip(leaves, decayed, strict=True) if not kernel], "weight_decay": 0.0},
    ]
    optimizer = make(groups, lr=RATE, weight_decay=weight_decay)
    sequence = []
    for gradients, rate in zip(GRADIENTS, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        for leaf, gradient in zip(leaves, jax.tree.leaves(gradients), strict=True):
            leaf.grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves, clip_norm)
        optimizer.step()
        sequence.append(np.concatenate([leaf.detach().numpy().ravel() for leaf in leaves]))
    return np.array(sequence)


def optim():
    return pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'").optim


class TensorFlowRMSProp:
    """TensorFlow's ApplyRMSProp and ApplyCenteredRMSProp as its documentation writes them, on PyTorch's tensors.

    With decoupled decay as AdamW's. `rate_in_momentum=False` is the same with the rate after momentum.
    """

    def __init__(self, groups, lr, weight_decay, *, decay, epsilon, momentum=0.0, centered=False, decoupled=False,
                 rate_in_momentum=True):  # fmt: skip
        self.param_groups = [{"lr": lr, "weight_decay": weight_decay, **group} for group in groups]
        for group in self.param_groups:
            group["slots"] = [(leaf * 0 + 1, leaf * 0, leaf * 0) for leaf in group["params"]]
        self.decay, self.epsilon, self.momentum, self.centered = decay, epsilon, momentum, centered
        self.decoupled, self.rate_in_momentum = decoupled, rate_in_momentum

    def step(self):
        for group in self.param_groups:
            rate, weight_decay = group["lr"], group["weight_decay"]
            for i, leaf in enumerate(group["params"]):
                mean_square, mean_gradient, velocity = group["slots"][i]
                gradient = leaf.grad if self.decoupled else leaf.grad + weight_decay * leaf.data
                mean_square = self.decay * mean_square + (1 - self.decay) * gradient**2
                mean_gradient = self.decay * mean_gradient + (1 - self.decay) * gradient
                variance = mean_square - mean_gradient**2 if self.centered else mean_square
                update = gradient / (variance + self.epsilon).sqrt()
                velocity = self.momentum * velocity + (rate if self.rate_in_momentum else 1) * update
                group["slots"][i] = mean_square.detach(), mean_gradient.detach(), velocity.detach()
                shrunk = leaf.data * (1 - rate * weight_decay) if self.decoupled else leaf.data
                leaf.data = shrunk - (velocity if self.rate_in_momentum else rate * velocity).detach()


ADAM = {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3}
RMSPROP = {"decay": 0.8, "epsilon": 1e-3}

# name, our options, the peer's optimiser, the peer's weight decay, the peer's clipping
CASES = {
    "sgd": ("sgd", {}, lambda: optim().SGD, {}),
    "sgd momentum": ("sgd", {"momentum": 0.9}, lambda: with_options(optim().SGD, momentum=0.9), {}),
    "sgd nesterov": (
        "sgd",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        lambda: with_options(optim().SGD, momentum=0.8, nesterov=True),
        {"weight_decay": 0.1},
    ),
    "sgd coupled clipped": (
        "sgd",
        {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 3.0},
        lambda: with_options(optim().SGD, momentum=0.9),
        {"weight_decay": 0.1, "clip_norm": 3.0},
    ),
    "adam": ("adam", {}, lambda: optim().Adam, {}),
    "adam coupled clipped": (
        "adam",
        {**ADAM, "weight_decay": 0.1, "clip_norm": 3.0},
        lambda: with_options(optim().Adam, betas=(0.8, 0.99), eps=1e-3),
        {"weight_decay": 0.1, "clip_norm": 3.0},
    ),
    "adam decoupled": (
        "adam",
        {**ADAM, "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
        lambda: with_options(optim().AdamW, betas=(0.8, 0.99), eps=1e-3),
        {"weight_decay": 0.1},
    ),
    "adamw whatever the mode": (
        "adamw",
        {**ADAM, "weight_decay": 0.1, "weight_decay_mode": "coupled"},
        lambda: with_options(optim().AdamW, betas=(0.8, 0.99), eps=1e-3),
        {"weight_decay": 0.1},
    ),
    "rmsprop": ("rmsprop", RMSPROP, lambda: with_options(optim().RMSprop, alpha=0.8, eps=1e-3), {}),
    "rmsprop momentum coupled": (
        "rmsprop",
        {**RMSPROP, "momentum": 0.9, "weight_decay": 0.1},
        lambda: with_options(optim().RMSprop, alpha=0.8, eps=1e-3, momentum=0.9),
        {"weight_decay": 0.1},
    ),
    "rmsprop centered": (
        "rmsprop",
        {**RMSPROP, "momentum": 0.5, "centered": True, "clip_norm": 3.0},
        lambda: with_options(optim().RMSprop, alpha=0.8, eps=1e-3, momentum=0.5, centered=True),
        {"clip_norm": 3.0},
    ),
    "rmsprop_tensorflow": (
        "rmsprop_tensorflow",
        {**RMSPROP, "weight_decay": 0.1},
        lambda: with_options(TensorFlowRMSProp, decay=0.8, epsilon=1e-3),
        {"weight_decay": 0.1},
    ),
    "rmsprop_tensorflow momentum centered": (
        "rmsprop_tensorflow",
        {"decay": 0.9, "epsilon": 1.0, "momentum": 0.9, "centered": True},
        lambda: with_options(
            TensorFlowRMSProp, decay=0.9, epsilon=1.0, momentum=0.9, centered=True, rate_in_momentum=False
        ),
        {},
    ),
    "rmsprop_tensorflow decoupled": (
        "rmsprop_tensorflow",
        {**RMSPROP, "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
        lambda: with_options(TensorFlowRMSProp, decay=0.8, epsilon=1e-3, decoupled=True),
        {"weight_decay": 0.1},
    ),
}


def with_options(peer, **fixed):
    return lambda groups, **options: peer(groups, **fixed, **options)


def test_every_optimizer_is_compared():
    assert {name for name, *_ in CASES.values()} == set(OPTIMIZERS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_equals_torch(case, scheduled):
    name, options, make_peer, peer_options = CASES[case]
    schedule = make_schedule(
        "cosine" if scheduled else "constant",
        learning_rate=RATE, steps_per_epoch=5, num_epochs=10, warmup_epochs=1.0 * scheduled,
    )  # fmt: skip
    with jax.enable_x64(True):
        rates = np.asarray(schedule(jnp.arange(STEPS)))
        ours = our_params(make_optimizer(name, schedule, **options), jnp.float64)
    theirs = torch_params(make_peer(), rates, **peer_options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    # In single precision, to that precision of the largest parameters (about 3).
    ours = our_params(make_optimizer(name, schedule, **options), jnp.float32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_plateau_scale_multiplies_the_rate(name):
    """The chain's updates times the plateau's scale: ReduceLROnPlateau after each step, weight decay included."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    metrics = np.random.default_rng(3).uniform(0, 1, STEPS)

    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(peer, factor=0.5, patience=3)
    rates = []
    for metric in metrics:
        rates.append(peer.param_groups[0]["lr"])
        scheduler.step(metric)
    assert len(set(rates)) > 3
    make_peer = with_options(torch.optim.SGD, momentum=0.9) if name == "sgd" else torch.optim.AdamW
    theirs = torch_params(make_peer, rates, weight_decay=0.1)

    with jax.enable_x64(True):
        state, scales = init_plateau("min"), []
        for metric in metrics:
            scales.append(state.scale)
            state = plateau_update(
                state, metric, mode="min", factor=0.5, patience=3, threshold=1e-4, threshold_mode="relative",
                cooldown=0, min_scale=0.0, learning_rate=RATE,
            )  # fmt: skip
        ours = our_params(make_optimizer(name, RATE, momentum=0.9, weight_decay=0.1), jnp.float64, scales)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_tensorflow_momentum_differs_only_after_a_change_of_rate():
    rates = np.where(np.arange(STEPS) < 10, RATE, RATE / 10)
    options = {**RMSPROP, "momentum": 0.5}
    with jax.enable_x64(True):
        schedule = make_schedule("step", learning_rate=RATE, steps_per_epoch=1, num_epochs=50, boundaries=(10,))
        ours = our_params(make_optimizer("rmsprop_tensorflow", schedule, **options), jnp.float64)
    theirs = torch_params(with_options(TensorFlowRMSProp, **options), rates)
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-9)
    ours, theirs = np.diff(ours, axis=0), np.diff(theirs, axis=0)
    assert np.max(np.abs(ours[10] - theirs[10])) > 1e-4  # TensorFlow's momentum still moves at the old rate
    np.testing.assert_allclose(ours[45:], theirs[45:], rtol=1e-6, atol=1e-12)


def test_weight_decay_reaches_kernels_only():
    assert kernels(draw(0) | {"kernel": np.ones(1), "kernels": [np.ones(1)]}) == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "head": {"kernel": True, "bias": False},
        "kernel": True,
        "kernels": [False],
    }
    params = draw(0)
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.5 * params["conv"]["kernel"], rtol=1e-6)
    for layer, leaf in (("conv", "bias"), ("norm", "scale"), ("head", "bias")):
        np.testing.assert_array_equal(updates[layer][leaf], 0.0)


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_equals_torch(max_norm):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    tensors = [torch.nn.Parameter(torch.zeros(leaf.shape)) for leaf in jax.tree.leaves(GRADIENTS[0])]
    for tensor, gradient in zip(tensors, jax.tree.leaves(GRADIENTS[0]), strict=True):
        tensor.grad = torch.tensor(gradient, dtype=torch.float32)
    torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    clip = clip_by_global_norm(max_norm)
    clipped, _ = clip.update(jax.tree.map(jnp.asarray, GRADIENTS[0]), clip.init(GRADIENTS[0]))
    for leaf, tensor in zip(jax.tree.leaves(clipped), tensors, strict=True):
        np.testing.assert_allclose(leaf, tensor.grad.numpy(), rtol=1e-6)


def test_clipping_passes_on_what_is_not_finite():
    """So that the loop sees it; clipped to a finite value, it would spoil the parameters in silence."""
    gradients = {"kernel": jnp.array([1.0, jnp.nan])}
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    assert np.isnan(clipped["kernel"]).all()


def test_moving_average_equals_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    model = torch.nn.Linear(3, 2).double()
    peer = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    with jax.enable_x64(True):
        peer.update_parameters(model)  # the first sets the average to the value
        average = [jnp.asarray(leaf.detach().numpy().copy()) for leaf in model.parameters()]
        for i in range(10):
            with torch.no_grad():
                for leaf in model.parameters():
                    leaf += i
            peer.update_parameters(model)
            average = moving_average(average, [leaf.detach().numpy() for leaf in model.parameters()], 0.9, 1000)
        for leaf, expected in zip(average, peer.module.parameters(), strict=True):
            np.testing.assert_allclose(leaf, expected.detach().numpy(), rtol=1e-12)


def test_the_first_weights_are_soon_forgotten_by_the_moving_average():
    """TensorFlow's documentation: the decay is min(decay, (1 + num_updates) / (10 + num_updates))."""
    with jax.enable_x64(True):
        average = expected = jnp.asarray(1.0)
        for step in range(200):
            average = jax.jit(moving_average)(average, jnp.asarray(0.0), 0.9, jnp.int32(step))
            expected = expected * min(0.9, (1 + step) / (10 + step))
            np.testing.assert_allclose(average, expected, rtol=1e-12)


def test_moving_average_keeps_what_does_not_change():
    values = {"params": jnp.asarray([0.1, 1 / 3, 1e-20]), "batch_stats": jnp.asarray([7.7])}
    for leaf, expected in zip(
        jax.tree.leaves(moving_average(values, values, 0.9999, 5)), jax.tree.leaves(values), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="unknown optimizer 'sdg'"):
        make_optimizer("sdg", RATE)
    with pytest.raises(UserError, match="unknown weight decay mode 'l2'"):
        make_optimizer("sgd", RATE, weight_decay_mode="l2")
    with pytest.raises(UserError, match="nesterov=True needs momentum"):
        make_optimizer("sgd", RATE, nesterov=True)
    message = "^unknown layer in weight_decay_layers 'haed'. Did you mean 'head'[?] Known: conv, head$"
    with pytest.raises(UserError, match=message):
        make_optimizer("sgd", RATE, weight_decay_layers=("conv", "haed")).init(draw(0))


def trunk(params):
    """All but "head"."""
    return {name: jax.tree.map(lambda _, name=name: name != "head", node) for name, node in params.items()}


@pytest.mark.parametrize("clip_norm", [0.0, 3.0])
@pytest.mark.parametrize(
    ("name", "options", "peer", "peer_options"),
    [
        ("sgd", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
        ("adam", {}, "Adam", {}),
        ("rmsprop", {"momentum": 0.5}, "RMSprop", {"alpha": 0.9, "momentum": 0.5}),
    ],
)
def test_a_frozen_trunk_begins_later_as_if_new_and_at_its_own_rate(name, options, peer, peer_options, clip_norm):
    """In PyTorch: parameters without a gradient until then, in a group with its own rate."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    frozen, share = 20, 0.25
    params = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(leaf)), draw(0))
    leaves, decayed, in_trunk = (jax.tree.leaves(tree) for tree in (params, kernels(params), trunk(params)))
    groups = [
        {"params": [leaf], "weight_decay": 0.1 if kernel else 0.0, "lr": RATE * (share if old else 1.0)}
        for leaf, kernel, old in zip(leaves, decayed, in_trunk, strict=True)
    ]
    optimizer = getattr(torch.optim, peer)(groups, lr=RATE, **peer_options)
    expected = []
    for step, gradients in enumerate(GRADIENTS):
        for leaf, gradient, old in zip(leaves, jax.tree.leaves(gradients), in_trunk, strict=True):
            leaf.grad = None if old and step < frozen else torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves, clip_norm)
        optimizer.step()
        expected.append(np.concatenate([leaf.detach().numpy().ravel() for leaf in leaves]))
    with jax.enable_x64(True):
        ours = our_params(
            make_optimizer(
                name, RATE, weight_decay=0.1, clip_norm=clip_norm, trunk=trunk, trunk_rate=share, frozen_updates=frozen,
                **options,
            ),
            jnp.float64,
        )  # fmt: skip
    np.testing.assert_allclose(ours, np.array(expected), rtol=1e-9, atol=1e-12)


LAYERS = {
    "conv1": {"conv": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,)}},
    "module": {"conv_1x1": {"conv": {"kernel": (4, 2)}}, "conv_3x3": {"conv": {"kernel": (4, 3)}}},
    "fc1": {"kernel": (5, 4), "bias": (4,)},
    "head": {"kernel": (4, 2), "bias": (2,)},
}


@pytest.mark.parametrize(
    ("patterns", "decayed"),
    [
        ((), {"conv1/conv", "module/conv_1x1/conv", "module/conv_3x3/conv", "fc1", "head"}),
        (("fc?",), {"fc1"}),
        (("fc*", "conv?"), {"fc1", "conv1/conv"}),
        (("module",), {"module/conv_1x1/conv", "module/conv_3x3/conv"}),
        (("*/conv_3x3", "head"), {"module/conv_3x3/conv", "head"}),
        (("conv1/conv",), {"conv1/conv"}),
    ],
)
def test_weight_decay_reaches_the_kernels_of_the_layers_that_are_named(patterns, decayed):
    flat = jax.tree_util.tree_leaves_with_path(kernels(random_layers(0), patterns))
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): chosen for path, chosen in flat}
    assert {path.removesuffix("/kernel") for path, chosen in paths.items() if chosen} == decayed


def random_layers(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(generator.standard_normal, LAYERS, is_leaf=is_shape)


@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
@pytest.mark.parametrize("patterns", [("conv1",), ("head", "*/conv_3x3")])
@pytest.mark.parametrize("finetuning", [{}, {"trunk": trunk, "trunk_rate": 0.5, "frozen_updates": 2}])
def test_the_layers_that_are_named_move_as_if_all_decayed_and_the_others_as_if_none_did(mode, patterns, finetuning):
    """Adam's arithmetic is that of each number; a pattern may match the trunk alone, or the head."""
    results = []
    for options in ({"weight_decay": 0.1, "weight_decay_layers": patterns}, {"weight_decay": 0.1}, {}):
        optimizer = make_optimizer("adam", RATE, weight_decay_mode=mode, **options, **finetuning)
        params = jax.tree.map(jnp.asarray, random_layers(0))
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(4):
            updates, state = update(jax.tree.map(jnp.asarray, random_layers(1 + step)), state, params)
            params = optax.apply_updates(params, updates)
        results.append((params, jax.tree.structure(state)))
    (found, structure), (all_decayed, structure_of_all), (none_decayed, _) = results
    assert structure == structure_of_all
    expected = jax.tree.map(
        lambda chosen, decayed, kept: decayed if chosen else kept, kernels(found, patterns), all_decayed, none_decayed
    )
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), found, expected)
    assert np.any(found["head"]["kernel"] != all_decayed["head"]["kernel"]) != ("head" in patterns)


def test_a_study_of_l2_on_some_layers_can_name_them():
    """The last convolution of each stage and the dense layers, but not the classifier (Skagerström et al. 2018, E)."""
    _, variables = shapes("tiny_vgg_e", size=64, num_classes=200)
    chosen = kernels(variables["params"], ("conv?_3", "fc?"))
    decayed = {name for name, node in chosen.items() if any(jax.tree.leaves(node))}
    assert decayed == {"conv1_3", "conv2_3", "conv3_3", "fc1", "fc2", "fc3"}
