"""Values that all processes of a run exchange over the devices. All of them have to make the same calls."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from inception_jax.distributed.watch import waiting


def any_process(flag: bool, what: str, seconds: float) -> bool:
    """Whether the flag is True in any process.

    Args:
      what, seconds: see `watch.waiting`.
    """
    with waiting(what, seconds):
        return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first(make: Callable[[], Any], what: str, seconds: float) -> Any:
    """The JSON value that `make` returns in process 0, in all processes.

    Args:
      make: called in process 0 alone. It must not raise, since the others would wait for its result.
      what, seconds: see `watch.waiting`.
    """
    if jax.process_count() == 1:
        return make()
    content = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    with waiting(what, seconds):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        # A broadcast is compiled for each size, so sizes are rounded up to a power of two.
        padded = np.frombuffer(content.ljust(1 << size.bit_length()), np.uint8)
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
