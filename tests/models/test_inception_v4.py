"""Inception v4 against the paper's figures 3 and 9."""

from networks import sizes

from inception_jax.models import InceptionV4


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
