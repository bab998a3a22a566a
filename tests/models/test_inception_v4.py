"""Inception v4 against the paper's figure 9 and against timm's."""

from functools import partial

import pytest
from networks import (
    assert_folding_changes_nothing,
    assert_gradients_equal,
    assert_logits_equal,
    assert_smallest_image_is,
    assert_trains_and_evaluates,
    count,
    peer_variables,
    randomize,
    shapes,
    sizes,
)
from peers import import_timm

from inception_jax.errors import UserError
from inception_jax.models import InceptionV4, create_model
from inception_jax.models.branches import BranchedModule
from inception_jax.models.inception_v4 import INCEPTION_C


def test_has_exactly_the_published_parameters():
    outputs, variables = shapes("inception_v4", size=75)
    assert count(variables) == 42_679_816
    assert outputs.logits.shape == (2, 1000)
    modules = [f"inception_{kind}{i}" for kind, times in (("a", 4), ("b", 7), ("c", 3)) for i in range(1, times + 1)]
    convolutions = {"conv_1a", "conv_2a", "conv_2b", "mixed_3a", "mixed_4a", "mixed_5a"}
    assert variables["params"].keys() == convolutions | {"reduction_a", "reduction_b", "fc", *modules}


def test_maps_have_the_sizes_of_figures_3_and_9():
    assert sizes(InceptionV4((1, 1, 1), 1000), 299) == {
        "conv_1a": (149, 149, 32), "conv_2a": (147, 147, 32), "conv_2b": (147, 147, 64), "mixed_3a": (73, 73, 160),
        "mixed_4a": (71, 71, 192), "mixed_5a": (35, 35, 384), "inception_a1": (35, 35, 384),
        "reduction_a": (17, 17, 1024), "inception_b1": (17, 17, 1024), "reduction_b": (8, 8, 1536),
        "inception_c1": (8, 8, 1536), "avg_pool": (1536,), "fc": (1000,),
    }  # fmt: skip


def test_the_small_stem_keeps_the_map():
    found = sizes(InceptionV4((1, 1, 1), 10, stem="small"), 32)
    assert (found["conv_1a"], found["mixed_5a"], found["inception_a1"]) == ((32, 32, 32), (32, 32, 384), (32, 32, 384))
    assert (found["inception_b1"], found["inception_c1"]) == ((16, 16, 1024), (8, 8, 1536))


@pytest.mark.parametrize(("stem", "smallest", "native"), [("imagenet", 75, 299), ("small", 1, 32)])
def test_knows_its_smallest_and_native_image_size(stem, smallest, native):
    model = InceptionV4((1, 1, 1), 10, stem=stem)
    assert model.native_image_size == native
    assert_smallest_image_is(model, smallest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?"),
        ({"norm": "lrn"}, "unknown norm 'lrn'. Known: batch, none"),
        ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?"),
        ({"repeats": (1, 1, 1)}, "unknown option of inception_v4 'repeats'."),
    ],
)
def test_wrong_options_are_named_and_the_depth_is_fixed(options, message):
    with pytest.raises(UserError) as error:
        shapes("inception_v4", size=75, **options)
    assert message in str(error.value)


def test_a_module_trains_and_evaluates():
    assert_trains_and_evaluates(BranchedModule(INCEPTION_C), (4, 4, 4, 8))


def test_folding_changes_nothing_in_a_module():
    assert_folding_changes_nothing(BranchedModule(INCEPTION_C), (2, 4, 4, 8))


@pytest.mark.slow
def test_folding_changes_nothing():
    assert_folding_changes_nothing(InceptionV4((1, 1, 1), 3, stem="small"), (2, 8, 8, 3))


def timms(repeats, num_classes):
    """timm's Inception v4 with so many modules of each kind."""
    peer = import_timm().create_model("inception_v4", num_classes=num_classes)
    stages = {6: repeats[0], 11: repeats[1], 19: repeats[2]}  # index of each kind's first module in `features`
    kept = [i for i in (*range(6), 10, 18)] + [start + i for start, times in stages.items() for i in range(times)]
    peer.features = type(peer.features)(*(peer.features[i] for i in sorted(kept)))
    randomize(peer)
    return peer


@pytest.mark.parametrize("repeats", [pytest.param((4, 7, 3), marks=pytest.mark.slow), (1, 1, 1)])
def test_logits_equal_timms(repeats):
    peer, model = timms(repeats, 1000), InceptionV4(repeats, 1000)
    assert model == create_model("inception_v4", num_classes=1000) or repeats == (1, 1, 1)
    size = 75 if repeats == (1, 1, 1) else 299
    assert_logits_equal(model, peer_variables(model, peer, "timm"), peer, (1, size, size, 3))


@pytest.mark.slow
def test_gradients_equal_timms():
    """At one module of each kind: more of them repeat its gradient."""
    model = InceptionV4((1, 1, 1), 10)
    convert = partial(peer_variables, model, format="timm")
    assert_gradients_equal(model, convert, timms((1, 1, 1), 10), (1, 107, 107, 3))
