"""Logits and gradients against torchvision's and timm's, a row for a network.

BN-Inception, which neither has, is compared with a port in `test_bn_inception.py`.
"""

from functools import partial
from itertools import pairwise

import pytest
from networks import assert_gradients_equal, assert_logits_equal, peer_variables, randomize
from peers import import_timm, import_torchvision

from inception_jax.models import InceptionResNetV2, InceptionV4, ResNet, create_model

slow = partial(pytest.param, marks=pytest.mark.slow)


def torchvisions(name, hidden_features=None, **options):
    """torchvision's network of that name, with random weights; `hidden_features` are for a VGG of ten classes."""
    models = import_torchvision().models
    import torch

    with torch.device("meta"):
        peer = models.get_model(name, **options)
        if hidden_features:
            sizes = (512 * 7 * 7, hidden_features, hidden_features, 10)
            for place, (inputs, outputs) in zip((0, 3, 6), pairwise(sizes), strict=True):
                peer.classifier[place] = torch.nn.Linear(inputs, outputs)
    randomize(peer)
    return peer


def torchvisions_resnet(block, stage_sizes):
    """torchvision's ResNet for ten classes, with so many blocks in each stage."""
    resnet = import_torchvision().models.resnet
    blocks = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    peer = resnet.ResNet(blocks[block], list(stage_sizes), num_classes=10)
    randomize(peer)
    return peer


def timms(name, num_classes):
    """timm's network of that name, without values."""
    create_model = import_timm().create_model
    import torch

    with torch.device("meta"):
        return create_model(name, num_classes=num_classes)


def timms_inception_v4(repeats, num_classes):
    """timm's Inception v4 with so many modules of each kind."""
    peer = timms("inception_v4", num_classes)
    stages = {6: repeats[0], 11: repeats[1], 19: repeats[2]}  # index of each kind's first module in `features`
    kept = [i for i in (*range(6), 10, 18)] + [start + i for start, times in stages.items() for i in range(times)]
    peer.features = type(peer.features)(*(peer.features[i] for i in sorted(kept)))
    randomize(peer)
    return peer


def timms_inception_resnet_v2(repeats, num_classes):
    """timm's Inception-ResNet v2 with so many modules of each kind."""
    peer = timms("inception_resnet_v2", num_classes)
    kept = dict(zip(("repeat", "repeat_1", "repeat_2"), (repeats[0], repeats[1], repeats[2] - 1), strict=True))
    for name, times in kept.items():
        setattr(peer, name, getattr(peer, name)[:times])
    randomize(peer)
    return peer


NO_WEIGHTS = {"init_weights": False}
INCEPTION = {"init_weights": False, "transform_input": False}


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "peer_options", "image_shape"),
    [
        # At small sizes, and once for each class of networks: comparisons of gradients have the logits, too, and those
        # in weights/test_preprocessing.py are at native sizes, without the auxiliary heads.
        # Maps of 1x2, which are spread to 6x6.
        ("alexnet", 100, {}, {}, (2, 67, 99, 3)),
        ("googlenet", 10, {"kernel_5x5": 3, "aux_heads": True}, {"aux_logits": True, **INCEPTION}, (2, 67, 64, 3)),
        slow(
            "googlenet", 1000, {"kernel_5x5": 3, "aux_heads": True}, {"aux_logits": True, **INCEPTION}, (2, 224, 224, 3)
        ),
        ("inception_v3", 10, {}, {"aux_logits": False, **INCEPTION}, (1, 75, 75, 3)),
        # At 299 pixels, since torchvision's auxiliary head needs 17x17 maps.
        slow("inception_v3", 10, {"aux_heads": True}, {"aux_logits": True, **INCEPTION}, (1, 299, 299, 3)),
        # Maps of 8x7, which are averaged; the paper's 7x7 are as they are.
        ("vgg11", 10, {"hidden_features": 16}, {"hidden_features": 16, **NO_WEIGHTS}, (2, 256, 224, 3)),
    ],
)
def test_logits_equal_torchvisions(name, num_classes, options, peer_options, image_shape):
    peer = torchvisions(name, num_classes=num_classes, **peer_options)
    model = create_model(name, num_classes=num_classes, **options)
    assert_logits_equal(model, peer_variables(model, peer, "torchvision"), peer, image_shape)


@pytest.mark.parametrize(
    ("name", "options", "peer_options", "image_shape"),
    [
        slow("alexnet", {}, {}, (2, 67, 99, 3)),
        slow("googlenet", {"kernel_5x5": 3, "aux_heads": True}, {"aux_logits": True, **INCEPTION}, (2, 67, 64, 3)),
        slow("inception_v3", {}, {"aux_logits": False, **INCEPTION}, (1, 107, 107, 3)),
        # Maps of 2x3, which are spread to 7x7. In float64 the paper's 4096 features have 10 GB of weights, gradients
        # and copies.
        ("vgg11_bn", {"hidden_features": 16}, {"hidden_features": 16, **NO_WEIGHTS}, (2, 67, 96, 3)),
    ],
)
def test_gradients_equal_torchvisions(name, options, peer_options, image_shape):
    peer = torchvisions(name, num_classes=10, **peer_options)
    model = create_model(name, num_classes=10, **options)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, peer, image_shape)


@pytest.mark.parametrize(("block", "stage_sizes"), [("basic", (1, 2, 1, 1)), ("bottleneck", (2, 1, 1, 1))])
def test_few_blocks_of_each_kind_equal_torchvisions(block, stage_sizes):
    """Logits and gradients with and without projections, on odd maps and even ones: SAME would differ from PyTorch's
    padding on even ones alone. More blocks repeat these; the tables of whole networks are those whose weights
    weights/test_convert.py reads."""
    model = ResNet(block, stage_sizes, num_classes=10)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, torchvisions_resnet(block, stage_sizes), (2, 35, 32, 3))


@pytest.mark.parametrize(
    ("network", "make", "repeats"),
    [
        (InceptionV4, timms_inception_v4, (1, 1, 1)),
        (InceptionResNetV2, timms_inception_resnet_v2, (1, 1, 2)),
    ],
)
def test_logits_equal_timms(network, make, repeats):
    """More modules of a kind repeat it; how many timm's have, weights/test_convert.py finds out."""
    peer, model = make(repeats, 1000), network(repeats, 1000)
    assert_logits_equal(model, peer_variables(model, peer, "timm"), peer, (1, 75, 75, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "make", "repeats"),
    [
        (InceptionV4, timms_inception_v4, (1, 1, 1)),
        (InceptionResNetV2, timms_inception_resnet_v2, (1, 1, 2)),
    ],
)
def test_gradients_equal_timms(network, make, repeats):
    """At the fewest modules of each kind: more of them repeat its gradient."""
    model = network(repeats, 10)
    convert = partial(peer_variables, model, format="timm")
    assert_gradients_equal(model, convert, make(repeats, 10), (1, 107, 107, 3))
