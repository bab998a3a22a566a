"""AlexNet: the sizes of its maps and the places of dropout."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import module_shapes, quick_jit

from inception_jax.models import AlexNet


@pytest.mark.parametrize(
    ("stem", "size", "sides"),
    [("imagenet", 224, (55, 27, 13, 6)), ("imagenet", 63, (15, 7, 3, 1)), ("small", 64, (64, 31, 15, 7)),
     ("small", 32, (32, 15, 7, 3)), ("small", 15, (15, 7, 3, 1))],
)  # fmt: skip
def test_maps_have_these_sizes(stem, size, sides):
    model = AlexNet(10, stem=stem)
    assert model.native_image_size == (224 if stem == "imagenet" else 32)
    assert model.min_image_size <= size
    _, state = module_shapes(model, (2, size, size, 3), capture_intermediates=True)
    names = ("conv1", "conv2", "conv3", "pool5")
    maps = [state["intermediates"][name]["__call__"][0].shape for name in names]
    assert maps == [(2, side, side, features) for side, features in zip(sides, (64, 192, 384, 256), strict=True)]


def test_dropout_stands_before_fc6_and_fc7():
    """With all that enters a layer dropped, only its bias is left; `fc` sees what `fc7` makes of that."""
    images = np.ones((2, 15, 15, 3), np.float32)
    model = AlexNet(3, stem="small", dropout_rate=1.0)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), module_shapes(model, images.shape)[1])
    apply = partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)}, capture_intermediates=True)
    outputs, state = quick_jit(apply)(variables, images)
    for name in ("fc6", "fc7"):
        np.testing.assert_array_equal(state["intermediates"][name]["__call__"][0], 1)
    np.testing.assert_array_equal(outputs.logits, 4097)
