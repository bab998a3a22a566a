"""One program for every platform, and for many devices: export and sharding of the operations together."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inception_jax import ops


def loss(parameters, x):
    """Each lowering once: strided stem, strided pool, 1x1, wide 3x3, 5x5 on 4x4, 3x3 on 2x2."""
    stem, pointwise, wide, large, small = parameters
    x = ops.max_pool(ops.conv(x, stem, (2, 2)), (3, 3), (2, 2), "VALID", ceil_mode=True)
    x = ops.conv(ops.max_pool(ops.conv(x, pointwise)), wide)
    x = ops.conv(ops.max_pool(ops.local_response_norm(x), (2, 2), (2, 2)), large)
    x = ops.conv(ops.max_pool(x, (2, 2), (2, 2)), small)
    return jnp.mean(jnp.square(ops.adaptive_avg_pool(x, 1)))


@pytest.fixture
def arguments():
    random = np.random.default_rng(0)
    shapes = [(7, 7, 3, 8), (1, 1, 8, 64), (3, 3, 64, 64), (5, 5, 64, 8), (3, 3, 8, 8)]
    parameters = [random.normal(size=shape) / shape[0] for shape in shapes]
    return parameters, random.normal(size=(8, 32, 32, 3))


def test_sharded_batch_equals_one_device(arguments):
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        parameters, x = jax.tree.map(jnp.asarray, arguments)
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        replicated = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
        value, (d_parameters, dx) = gradient(replicated, sharded)
        assert dx.sharding.is_equivalent_to(sharded.sharding, 4)
        # Only gradients and the loss are summed over devices: the maps stay where they are.
        compiled = gradient.lower(replicated, sharded).compile().as_text()
        assert "all-gather" not in compiled
        assert "all-to-all" not in compiled
        for got, wanted in zip(
            jax.tree.leaves((value, d_parameters, dx)), jax.tree.leaves(gradient(parameters, x)), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-13)


def test_one_export_serves_cpu_and_cuda(arguments):
    with jax.enable_x64(True):
        parameters, x = jax.tree.map(jnp.asarray, arguments)
        gradient = jax.jit(jax.grad(loss))
        exported = jax.export.export(gradient, platforms=("cpu", "cuda"))(parameters, x)
        assert exported.platforms == ("cpu", "cuda")
        for got, wanted in zip(exported.call(parameters, x), gradient(parameters, x), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-13)


def test_export_with_a_symbolic_batch(arguments):
    parameters, x = jax.tree.map(jnp.float32, arguments)
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = jax.export.export(jax.jit(loss), platforms=("cpu", "cuda"))(parameters, shape)
    np.testing.assert_allclose(exported.call(parameters, x[:3]), jax.jit(loss)(parameters, x[:3]), rtol=1e-5)
