"""The small Inception network for images of 32x32 pixels: its first maps and its initial kernels."""

import jax
import numpy as np
import pytest
from networks import quick_jit

from inception_jax.models import create_model


@pytest.mark.parametrize("channels", [1, 3])
def test_its_first_maps_are_whitened_squares_in_both_signs(channels):
    """Natural pictures have neighbours that are alike: here sums of noise."""
    noise = np.random.default_rng(0).standard_normal((16, 36, 36, channels))
    images = sum(noise[:, i : i + 32, j : j + 32] for i in range(4) for j in range(4))
    images = np.asarray(images + 2 * images.mean(-1, keepdims=True), np.float32)
    model = create_model("small_inception", num_classes=3, stage_features=(4,))

    @quick_jit
    def whitened(key, images):
        _, state = model.apply(
            model.init(key, images, train=True),
            images,
            train=True,
            mutable=["intermediates", "batch_stats"],
            capture_intermediates=lambda module, _: module.name == "whiten",
        )
        return state["intermediates"]["whiten"]["__call__"][0]

    maps = np.asarray(whitened(jax.random.key(0), images))
    assert maps.shape == (16, 31, 31, 8 * channels)
    whole = maps[..., : 4 * channels] - maps[..., 4 * channels :]  # both signs, each after a ReLU
    assert (maps >= 0).all()
    assert not (maps[..., : 4 * channels] * maps[..., 4 * channels :]).any()
    correlations = np.corrcoef(whole.reshape(-1, 4 * channels).T)
    np.testing.assert_allclose(whole.std((0, 1, 2)), 1, atol=0.01)
    assert np.abs(correlations - np.eye(4 * channels)).max() < 0.1
    pixels = np.stack([images[:, i : i + 31, j : j + 31] for i in (0, 1) for j in (0, 1)], -1).reshape(-1, 4 * channels)
    assert np.abs(np.corrcoef(pixels.T) - np.eye(4 * channels)).max() > 0.7


def test_its_convolutions_begin_as_the_identity():
    model = create_model("small_inception", num_classes=3, stage_features=(8, 40))

    @quick_jit
    def initial_kernels(key):
        params = model.init(key, np.zeros((1, 8, 8, 3), np.float32), train=False)["params"]
        return {
            "conv1": params["conv1"]["kernel"],  # 24 to 8 channels
            "conv2": params["conv2"]["kernel"],  # 8 to 40
            "conv_3x3": params["inception2"]["conv_3x3"]["kernel"],  # 40 to 30
            "conv_1x1": params["inception2"]["conv_1x1"]["kernel"],  # 40 to 10
        }

    kernels = initial_kernels(jax.random.key(0))
    maps = np.random.default_rng(0).standard_normal((2, 5, 5, 40), np.float32)
    for name, kernel in kernels.items():
        first, features = min(kernel.shape[2:]), kernel.shape[3]
        y = jax.lax.conv_general_dilated(
            maps[..., : kernel.shape[2]], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_array_equal(y[..., :first], maps[..., :first], err_msg=name)
        assert features == first or np.asarray(kernel[..., first:]).all(), name
