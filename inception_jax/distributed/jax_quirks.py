"""What the package needs of JAX's private modules, for which there is no public API. They are used here alone."""

from typing import Any

PARAMETERS = ("coordinator_address", "num_processes", "process_id", "local_device_ids")


def runtime() -> Any:
    """JAX's distributed runtime: `client`, None until it is started, `process_id` and `num_processes`.

    Unlike `jax.process_index` and `jax.process_count`, it does not initialize the devices.
    """
    from jax._src import distributed

    return distributed.global_state


def detect_processes(seconds: int) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` that Slurm or another launcher known to JAX determines.

    Raises errors of many types, since it parses what other programs have set; a value is None if there is no launcher.
    """
    from jax._src import clusters

    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    return dict(zip(PARAMETERS, detect(None, None, None, None, None, seconds), strict=True))
