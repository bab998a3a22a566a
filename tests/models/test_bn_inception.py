"""BN-Inception against the paper's figure 5 and against a port of the widely used weights, written here."""

from collections import OrderedDict

import jax
import pytest
from networks import assert_gradients_equal, assert_logits_equal, randomize, sizes

from inception_jax.models import BNInception, create_model
from inception_jax.weights import from_state_dict


def test_maps_have_the_sizes_of_figure_5():
    """But for the channels of 4c, 4d and 4e, which it prints as 576, 576 and 1024."""
    found = sizes(BNInception(1000), 224)
    assert found == {
        "conv1": (112, 112, 64), "pool_1": (56, 56, 64), "conv2": (56, 56, 64), "conv3": (56, 56, 192),
        "pool_2": (28, 28, 192), "inception_3a": (28, 28, 256), "inception_3b": (28, 28, 320),
        "inception_3c": (14, 14, 576), "inception_4a": (14, 14, 576), "inception_4b": (14, 14, 576),
        "inception_4c": (14, 14, 608), "inception_4d": (14, 14, 608), "inception_4e": (7, 7, 1056),
        "inception_5a": (7, 7, 1024), "inception_5b": (7, 7, 1024), "avg_pool": (1024,), "fc": (1000,),
    }  # fmt: skip


def test_the_small_stem_keeps_the_map_and_odd_maps_fit():
    for size, sides in ((32, (32, 16, 8)), (13, (13, 7, 4))):
        found = sizes(BNInception(10, stem="small"), size)
        names = ("inception_3a", "inception_3c", "inception_4e")
        assert tuple(found[name][:2] for name in names) == tuple((side, side) for side in sides)
    assert sizes(BNInception(10), 113)["inception_4e"] == (4, 4, 1056)


# Channels of the branches: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pool, 1x1.
PORT = {
    "inception_3a": (192, 64, (64, 64), (64, 96, 96), ("avg", 32)),
    "inception_3b": (256, 64, (64, 96), (64, 96, 96), ("avg", 64)),
    "inception_3c": (320, None, (128, 160), (64, 96, 96), ("max", None)),
    "inception_4a": (576, 224, (64, 96), (96, 128, 128), ("avg", 128)),
    "inception_4b": (576, 192, (96, 128), (96, 128, 128), ("avg", 128)),
    "inception_4c": (576, 160, (128, 160), (128, 160, 160), ("avg", 128)),
    "inception_4d": (608, 96, (128, 192), (160, 192, 192), ("avg", 128)),
    "inception_4e": (608, None, (128, 192), (192, 256, 256), ("max", None)),
    "inception_5a": (1056, 352, (192, 320), (160, 224, 224), ("avg", 128)),
    "inception_5b": (1024, 352, (192, 320), (192, 224, 224), ("max", 128)),
}


def port(num_classes):
    """The layout of the widely used weights in PyTorch, under our names, with a bias before every batch norm."""
    nn = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'").nn
    from torch import cat

    def unit(inputs, outputs, side=1, stride=1):
        conv = nn.Conv2d(inputs, outputs, side, stride, side // 2)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs, eps=1e-5), relu=nn.ReLU()))

    class Module(nn.Module):
        def __init__(self, inputs, conv_1x1, conv_3x3, double, pool):
            super().__init__()
            kind, projected = pool
            stride = 1 if projected else 2
            self.conv_1x1 = unit(inputs, conv_1x1) if conv_1x1 else None
            self.conv_3x3_reduce = unit(inputs, conv_3x3[0])
            self.conv_3x3 = unit(*conv_3x3, 3, stride)
            self.double_reduce = unit(inputs, double[0])
            self.double_3x3_1 = unit(double[0], double[1], 3)
            self.double_3x3_2 = unit(double[1], double[2], 3, stride)
            if stride == 2:
                self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
            else:
                self.pool = nn.AvgPool2d(3, 1, 1) if kind == "avg" else nn.MaxPool2d(3, 1, 1)
            self.pool_proj = unit(inputs, projected) if projected else nn.Identity()

        def forward(self, x):
            branches = [self.conv_1x1(x)] if self.conv_1x1 else []
            branches.append(self.conv_3x3(self.conv_3x3_reduce(x)))
            branches.append(self.double_3x3_2(self.double_3x3_1(self.double_reduce(x))))
            return cat([*branches, self.pool_proj(self.pool(x))], 1)

    layers = OrderedDict(conv1=unit(3, 64, 7, 2), pool_1=nn.MaxPool2d(3, 2, ceil_mode=True))
    layers |= OrderedDict(conv2=unit(64, 64), conv3=unit(64, 192, 3), pool_2=nn.MaxPool2d(3, 2, ceil_mode=True))
    layers |= OrderedDict((name, Module(*row)) for name, row in PORT.items())
    layers |= OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(1024, num_classes))
    return nn.Sequential(layers)


CADENES_NAMES = {
    "conv1": "conv1_7x7_s2", "conv2": "conv2_3x3_reduce", "conv3": "conv2_3x3", "conv_1x1": "1x1",
    "conv_3x3_reduce": "3x3_reduce", "conv_3x3": "3x3", "double_reduce": "double_3x3_reduce",
    "double_3x3_1": "double_3x3_1", "double_3x3_2": "double_3x3_2", "pool_proj": "pool_proj",
}  # fmt: skip


def from_port(peer):
    """Its state as our variables, by way of the names that it has in the file of the widely used weights."""
    state = {}
    for key, value in peer.state_dict().items():
        *modules, leaf = key.split(".")
        if modules == ["fc"]:
            name = "last_linear"
        else:
            *block, unit, part = modules
            name = "_".join([*block, CADENES_NAMES[unit], *(["bn"] if part == "norm" else [])])
        state[f"{name}.{leaf}"] = value.detach().numpy()
    bias = state["last_linear.bias"]
    with jax.enable_x64(True):  # for float64; nothing else changes
        return from_state_dict(BNInception(len(bias), param_dtype=bias.dtype), state)


def test_logits_equal_the_ports():
    peer = port(1000)
    assert sum(parameter.numel() for parameter in peer.parameters()) == 11_295_240
    randomize(peer)
    assert_logits_equal(create_model("bn_inception", num_classes=1000), from_port(peer), peer, (2, 64, 64, 3))


@pytest.mark.slow
def test_gradients_equal_the_ports():
    peer = port(10)
    randomize(peer)
    assert_gradients_equal(BNInception(10), from_port, peer, (2, 64, 64, 3))
