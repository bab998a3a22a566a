"""When programs for the CPU are compiled with oneDNN's convolutions, and where bfloat16 is fast."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import ops
from inception_jax.ops import convolution_forms, onednn

NEW, OLD = "0.12.0", "0.10.2"
PLAIN, WIDE, WITH_UNITS = {"avx2"}, {"avx2", "avx512f"}, {"avx2", "avx512f", "avx512_bf16"}


@pytest.fixture
def machine(monkeypatch):
    def set_up(version, flags, devices=1, platform="cpu"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
        monkeypatch.setattr(onednn, "processor_flags", lambda: frozenset(flags))
        monkeypatch.setattr(jax, "local_device_count", lambda: devices)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    return set_up


@pytest.mark.parametrize(
    ("version", "flags", "fast"),
    [(NEW, WITH_UNITS, True), (NEW, WIDE | {"amx_bf16"}, True), (OLD, WITH_UNITS, False), (NEW, WIDE, False)],
)
def test_where_bfloat16_is_faster(machine, version, flags, fast):
    machine(version, flags)
    assert ops.fast_bfloat16() == fast


@pytest.mark.parametrize(
    ("version", "flags", "devices", "platform", "used"),
    [
        (NEW, WIDE, 1, "cpu", True),
        (NEW, WIDE, 8, "cpu", False),
        (NEW, WIDE, 1, "gpu", False),
        (NEW, PLAIN, 1, "cpu", False),
        (NEW, set(), 1, "cpu", False),
        (OLD, WITH_UNITS, 1, "cpu", False),
    ],
)
def test_the_compilers_options(machine, version, flags, devices, platform, used):
    machine(version, flags, devices, platform)
    assert bool(ops.compiler_options(jnp.bfloat16)) == used
    assert not ops.compiler_options(jnp.float32)
    assert not ops.compiler_options(None)


def exact(function, *arguments):
    with jax.enable_x64(True):
        results = jax.jit(function)(*(jnp.asarray(each, jnp.float64) for each in arguments))
        return [np.asarray(each) for each in results]


# Programs with oneDNN's convolutions cannot be kept, and JAX says so.
pytestmark = pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")


@pytest.mark.skipif(not onednn.suits_cpu(), reason="needs jaxlib 0.12 and AVX-512")
@pytest.mark.parametrize(
    ("batch", "size", "kernel", "stride", "channels"),
    [(4, 8, 1, 1, (64, 96)), (4, 7, 1, 2, (16, 32)), (4, 2, 3, 1, (64, 96)), (4, 4, 5, 1, (16, 32)),
     (4, 9, 3, 2, (32, 64)), (4, 8, 3, 1, (64, 96)), (4, 8, 5, 1, (16, 32)), (4, 16, 7, 2, (3, 64)),
     (4, 3, 5, 2, (16, 32)),
     # What AMX computes wrongly: few channels, or few examples, which are the channels of the kernel's gradient.
     (4, 20, 4, 1, (8, 16)), (4, 40, 16, 1, (2, 24)), (4, 25, 16, 2, (6, 12)), (2, 32, 3, 1, (64, 64)),
     (8, 8, 3, 1, (64, 64)), (12, 8, 3, 1, (32, 48)), (10, 16, 5, 1, (16, 32)), (40, 32, 3, 1, (16, 16))],
)  # fmt: skip
def test_compiled_with_onednn_it_is_the_same_convolution(batch, size, kernel, stride, channels):
    """Value and gradients, and all of them are oneDNN's: none is left to XLA's slow ones."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(batch, size, size, channels[0])), jnp.bfloat16)
    weights = jnp.asarray(random.normal(size=(kernel, kernel, *channels)), jnp.bfloat16)
    pads = ((kernel // 2, (kernel - 1) // 2),) * 2

    def run(implementation, x, weights, dy):
        conv = functools.partial(ops.conv, strides=(stride,) * 2, padding=pads, implementation=implementation)
        y, pull_back = jax.vjp(conv, x, weights)
        return y, *pull_back(dy)

    shape = jax.eval_shape(functools.partial(ops.conv, strides=(stride,) * 2, padding=pads), x, weights).shape
    dy = jnp.asarray(random.normal(size=shape), jnp.bfloat16)
    program = jax.jit(functools.partial(run, "auto")).lower(x, weights, dy).compile(onednn._OPTIONS)
    text = program.as_text()
    assert "__onednn$" in text
    assert " convolution(" not in text
    wanted = exact(functools.partial(run, "lax"), x, weights, dy)
    for found, each in zip(program(x, weights, dy), wanted, strict=True):
        assert np.linalg.norm(np.asarray(found, np.float64) - each) < 8e-3 * np.linalg.norm(each)


@pytest.mark.parametrize("options", [{}, onednn._OPTIONS if onednn.suits_cpu() else {}])
def test_a_chain_of_convolutions_in_bfloat16_that_ends_in_a_mean(options):
    """JAX 0.12 computes NaN, or any number, where nothing keeps them apart."""
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 16, 16, 64), np.float32)
    weights = random.standard_normal((3, 3, 64, 64), np.float32) / 24

    def network(x, weights):
        for _ in range(2):
            y = ops.alone(jax.nn.relu(ops.conv(x, weights)))
            x = jax.nn.relu(ops.alone(ops.conv(y, weights)) + x)
        return x.astype(jnp.float32).mean((1, 2))

    program = jax.jit(network).lower(*(jnp.asarray(each, jnp.bfloat16) for each in (x, weights)))
    found = program.compile(options)(*(jnp.asarray(each, jnp.bfloat16) for each in (x, weights)))
    wanted = jax.jit(network)(x, weights)
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("number", "size"), [(8, 40), (17, 40), (130, 3), (128, 3)])
def test_the_kernels_gradient_is_summed_over_parts_of_the_batch(monkeypatch, number, size):
    """Also of a last part that is smaller; the sum is float32's, and only the result is rounded."""
    monkeypatch.setattr(onednn, "suits_cpu", lambda: True)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(number, size, size, 4)), jnp.bfloat16)
    kernel = jnp.asarray(random.normal(size=(3, 3, 4, 4)), jnp.bfloat16)
    dy = jnp.asarray(random.normal(size=(number, size, size, 4)), jnp.bfloat16)

    def gradient(implementation, x, kernel, dy):
        conv = functools.partial(ops.conv, padding=((1, 1), (1, 1)), implementation=implementation)
        return jax.vjp(conv, x, kernel)[1](dy)[1:]

    (got,) = jax.jit(functools.partial(gradient, "auto"))(x, kernel, dy)
    (expected,) = exact(functools.partial(gradient, "lax"), x, kernel, dy)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=2**-8 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "stride", "channels"),
    [(2, 9, 3, 1, (32, 96)), (40, 9, 5, 2, (32, 128)), (130, 2, 3, 1, (64, 96)), (2, 16, 3, 1, (8, 8)),
     (8, 4, 3, 1, (8, 8)), (34, 16, 3, 1, (8, 8)), (1, 8, 4, 1, (8, 16))],
)  # fmt: skip
def test_the_forms_for_tiles(monkeypatch, batch, size, kernel, stride, channels):
    """Products of rows for the kernel's gradient, and channels or examples filled up with zeros, in float64."""
    monkeypatch.setattr(convolution_forms, "_suits_onednn", lambda dtype: True)
    monkeypatch.setattr(onednn, "has_tiles", lambda: True)
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(batch, size, size, channels[0])), random.normal(size=(kernel, kernel, *channels))

    def run(implementation, x, weights):
        pads = ((kernel // 2, (kernel - 1) // 2),) * 2
        conv = functools.partial(ops.conv, strides=(stride,) * 2, padding=pads, implementation=implementation)
        y, pull_back = jax.vjp(conv, x, weights)
        return y, *pull_back(jnp.cos(y))

    for found, wanted in zip(
        exact(functools.partial(run, "auto"), x, weights), exact(functools.partial(run, "lax"), x, weights), strict=True
    ):
        # The sum over parts of the batch is float32's.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
