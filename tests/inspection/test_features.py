"""What is taken out of a running network, and Grad-CAM against a computation in PyTorch."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import module_shapes, peer_variables, random_variables, randomize
from peers import import_torchvision

from inception_jax import activations, create_model, grad_cam
from inception_jax.errors import UserError
from inception_jax.models import ResNet
from inception_jax.models.googlenet import Inception, InceptionModule


class Small(nn.Module):
    """A network from outside: logits alone, an inner trunk, maps before its classifier, one layer called twice."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv")(images))
        x = nn.remat(InceptionModule, static_argnums=(2,))(Inception(2, 2, 3, 2, 2, 2), name="inception_3a")(x, train)
        twice = nn.Dense(9, name="twice")
        x = nn.max_pool(twice(twice(x)), (2, 2), (2, 2))
        return nn.Dense(4, name="fc")(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def small():
    images = np.random.default_rng(0).standard_normal((3, 8, 6, 2), np.float32)
    return Small(), random_variables(module_shapes(Small(), images.shape)[1]), images


def test_without_names_the_steps_of_the_network_come_in_order(small):
    model, variables, images = small
    maps = activations(model, variables, images)
    assert {name: value.shape for name, value in maps.items()} == {
        "conv": (3, 8, 6, 6), "inception_3a": (3, 8, 6, 9), "twice": (3, 8, 6, 9), "fc": (3, 4)
    }  # fmt: skip
    assert list(maps) == ["conv", "inception_3a", "twice", "fc"]
    np.testing.assert_allclose(maps["fc"], model.apply(variables, images, train=False), atol=1e-5)
    kernel, bias = variables["params"]["twice"]["kernel"], variables["params"]["twice"]["bias"]
    twice = (maps["inception_3a"] @ kernel + bias) @ kernel + bias
    np.testing.assert_allclose(maps["twice"], twice, atol=1e-4)


def test_names_and_patterns_choose_layers(small):
    wanted = ["fc", "inception_*/conv_?x?", "inception_3a/conv_3x3"]
    maps = activations(*small, layers=wanted)
    assert list(maps) == ["fc", *(f"inception_3a/conv_{side}x{side}" for side in (1, 3, 5))]
    assert list(activations(*small, layers="con*")) == ["conv"]
    assert list(activations(*small, layers=[])) == []
    (_, state) = small[0].apply(small[1], small[2], train=False, capture_intermediates=True)
    (expected,) = state["intermediates"]["inception_3a"]["conv_3x3"]["__call__"]
    np.testing.assert_allclose(maps["inception_3a/conv_3x3"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("cnov", r"unknown layer 'cnov'\. Did you mean 'conv'\? Known: conv, fc, inception_3a, twice"),
        ("inception_3a/conv3x3", r"Did you mean 'inception_3a/conv_3x3'\?"),
        ("inception_3b/conv_3x3", r"Known: conv, fc, inception_3a, twice"),
        ("inception_*/nothing*", r"unknown layer 'inception_\*/nothing\*'"),
        ("conv/kernel", "Known: conv, fc"),
    ],
)
def test_an_unknown_layer_is_answered_with_the_nearest(small, layer, message):
    for look in (activations, grad_cam):
        with pytest.raises(UserError, match=message):
            look(*small, layer)


def test_grad_cam_of_a_linear_end_is_what_can_be_worked_out(small):
    """Behind `twice` there are only the maximum of four and one dense layer, whose gradient is its kernel."""
    model, variables, images = small
    classes = [0, 3, 1]
    heat = grad_cam(model, variables, images, "twice", classes)
    maps = activations(model, variables, images)["twice"]
    kernel = variables["params"]["fc"]["kernel"].reshape(4, 3, 9, 4)
    weights = kernel.sum((0, 1))[:, classes].T / (8 * 6)  # the mean of a gradient that is zero but for the maxima
    expected = np.maximum((maps * weights[:, None, None]).sum(-1), 0)
    np.testing.assert_allclose(heat, expected / expected.max((1, 2), keepdims=True), atol=1e-5)


@pytest.mark.parametrize("layer", ["inception_3a", "inception_3a/conv_3x3"])
def test_grad_cam_reaches_into_modules(small, layer):
    """A small change of each of the layer's channels, by hand, moves the logit as the heat's weights say."""
    model, variables, images = small
    maps = activations(model, variables, images, layer)[layer]
    step = 1e-2

    @jax.jit
    @jax.vmap
    def logits(change):
        def add(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            return y + change if "/".join(context.module.path) == layer else y

        with nn.intercept_methods(add):
            return model.apply(variables, images, train=False)[:, 1]

    weights = (logits(step * np.eye(maps.shape[-1])) - logits(np.zeros((1, maps.shape[-1])))).T / step
    expected = np.maximum((maps * weights[:, None, None]).sum(-1), 0)
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-9)
    np.testing.assert_allclose(grad_cam(model, variables, images, layer, 1), expected, atol=0.05)


def test_grad_cam_is_of_the_last_maps_and_the_most_probable_class_unless_told(small):
    model, variables, images = small
    likely = np.argmax(model.apply(variables, images, train=False), -1)
    np.testing.assert_array_equal(grad_cam(*small), grad_cam(*small, "twice", likely))
    assert grad_cam(*small, classes=2).shape == (3, 8, 6)


def test_where_nothing_speaks_for_a_class_the_heat_is_zero(small):
    model, variables, images = small
    fc = {"kernel": np.zeros_like(variables["params"]["fc"]["kernel"]), "bias": np.ones(4, np.float32)}
    silent = variables | {"params": variables["params"] | {"fc": fc}}
    np.testing.assert_array_equal(grad_cam(model, silent, images), np.zeros((3, 8, 6)))


@pytest.mark.parametrize("function", [activations, grad_cam])
def test_pictures_that_are_not_normalized_are_refused(small, function):
    model, variables, images = small
    with pytest.raises(UserError, match=r"not uint8 \(3, 8, 6, \d\): run\.normalize\(images\) converts uint8 images"):
        function(model, variables, np.zeros(images.shape, np.uint8))


def test_what_grad_cam_cannot_do_is_said(small):
    with pytest.raises(UserError, match=r"layer 'fc' does not return maps"):
        grad_cam(*small, "fc")
    for classes in (4, [0, 1, -1]):
        with pytest.raises(UserError, match="they must be from 0 to 3"):
            grad_cam(*small, classes=classes)

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(2)(images.mean((1, 2)))

    variables = Flat().init(jax.random.key(0), small[2], train=False)
    with pytest.raises(UserError, match="no layer of this network returns maps"):
        grad_cam(Flat(), variables, small[2])


def test_the_default_layer_is_deeper_where_the_network_is_wrapped_and_has_maps_that_show_a_place_where_it_can():
    from inception_jax.inspection.features import _last_maps
    from inception_jax.inspection.trace import trace_layers

    class Wrapped(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return create_model("simple_cnn", num_classes=3, stage_features=(4, 4))(images, train=train)

    assert _last_maps(trace_layers(Wrapped(), (8, 8, 3))) == "SimpleCNN_0/conv2_2"
    googlenet = create_model("googlenet", num_classes=3)
    assert _last_maps(trace_layers(googlenet, (224, 224, 3))) == "inception_5b"
    assert _last_maps(trace_layers(googlenet, (32, 32, 3))) == "inception_3b"  # 4x4; those after it have 2x2 and 1x1
    assert _last_maps(trace_layers(googlenet, (16, 16, 3))) == "conv3"
    assert _last_maps(trace_layers(googlenet, (2, 2, 3))) == "inception_5b"
    assert _last_maps(trace_layers(googlenet, (1, 1, 3))) == "inception_5b"


def test_lower_precision_gives_heat_in_float32():
    model = create_model("simple_cnn", num_classes=3, stage_features=(4,), norm="batch", dtype=jnp.bfloat16)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    variables = random_variables(module_shapes(model, images.shape)[1])
    heat = grad_cam(model, variables, images)
    assert heat.dtype == jnp.float32
    assert float(heat.max()) <= 1


def test_grad_cam_equals_pytorchs():
    """With hooks on torchvision's ResNet; ours reads the same weights."""
    resnet = import_torchvision().models.resnet
    import torch

    peer = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    randomize(peer)
    images = np.random.default_rng(1).standard_normal((2, 64, 48, 3), np.float32)
    classes = [3, 1]

    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept["maps"] = output

    peer.layer2.register_forward_hook(keep)
    logits = peer.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    logits[range(2), classes].sum().backward()
    weights = kept["maps"].grad.mean((2, 3), keepdim=True)
    heat = torch.relu((weights * kept["maps"]).sum(1, keepdim=True))
    heat = torch.nn.functional.interpolate(heat, (64, 48), mode="bilinear", align_corners=False)[:, 0]
    expected = (heat / heat.amax((1, 2), keepdim=True)).detach().numpy()

    model = ResNet("basic", (1, 1, 1, 1), num_classes=5)
    ours = grad_cam(model, peer_variables(model, peer, "torchvision"), images, "stage2_block1", classes)
    assert expected.max() == 1
    np.testing.assert_allclose(ours, expected, atol=1e-4)
