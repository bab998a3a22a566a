"""One mesh of devices with one axis, "data": batches are split over it, everything else is on every device."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from inception_jax.errors import UserError


def make_mesh(num_devices: int = 0) -> Mesh:
    """The data mesh over the first `num_devices` devices; 0: all.

    Raises:
      UserError: there are not so many.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise UserError(f"num_devices={num_devices}, but there are {len(devices)}: {devices[0].platform.upper()}")
    chosen = devices[: num_devices or None]
    # Auto: with explicit axes, the default, Linen's layers do not trace.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises UserError unless a batch splits evenly over the mesh's devices."""
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{field}={batch_size} does not divide over {mesh.size} devices: choose {nearest}")


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array of the tree, whole, on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Every array of the tree, its first axis split over the devices."""
    return jax.device_put(tree, NamedSharding(mesh, P("data")))
