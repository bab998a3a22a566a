"""One mesh of devices with one axis, "data": batches are split over it, everything else is replicated.

With several processes, each owns some of the devices, and reads and holds only their rows of a batch.
"""

import itertools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from inception_jax.errors import UserError


def make_mesh(num_devices: int = 0) -> Mesh:
    """The data mesh over the first `num_devices` devices of all processes; 0: all.

    Raises:
      UserError: there are fewer devices, or a process would have none of them.
    """
    devices = jax.devices()
    if num_devices not in (0, len(devices)) and jax.process_count() > 1:
        raise UserError(
            f"num_devices={num_devices} is not allowed: {jax.process_count()} processes use all of their "
            f"{len(devices)} devices: set 0"
        )
    if num_devices > len(devices):
        raise UserError(
            f"num_devices={num_devices} is not allowed: there are {len(devices)} devices: {devices[0].platform.upper()}"
        )
    chosen = devices[: num_devices or None]
    # Auto: Linen's layers cannot be traced with explicit axes, the default.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises UserError unless a batch splits evenly over the mesh's devices."""
    if batch_size % mesh.size:
        below, above = batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"{field}={batch_size} is not divisible by {mesh.size}, the number of devices: choose {nearest}, or "
            "another num_devices"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of the tree on every device. All processes must pass the same arrays."""
    return _put(tree, NamedSharding(mesh, P()))


def own(tree: Any, mesh: Mesh) -> Any:
    """Like `replicate`, in buffers that nothing else uses, so that the tree can be donated.

    Leaves that share an array become separate ones; what NumPy, the caller or several devices hold is copied.
    """
    return jax.device_put(replicate(tree, mesh), NamedSharding(mesh, P()), may_alias=False)


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis of every array of the tree over the devices.

    Args:
      tree: this process's part of the batch, see `local_rows`.
    """
    return _put(tree, NamedSharding(mesh, P("data")))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a batch that this process's devices hold."""
    rows = NamedSharding(mesh, P("data")).addressable_devices_indices_map((batch_size,)).values()
    bounds = sorted((part[0].start or 0, part[0].stop or batch_size) for part in rows if part is not None)
    # The mesh orders devices by process, so a process's rows are contiguous.
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    return slice(bounds[0][0], bounds[-1][1])
