"""Checkpoints of a run of two processes: both do the same, whatever one of them alone sees."""

import os
import socket
import subprocess
import sys
import textwrap

SECONDS = 120  # after which a process that waits for the other ends itself

START = """
import os, signal, sys
from pathlib import Path

signal.alarm(int(sys.argv[4]))
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

index, folder = int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=index, initialization_timeout=60)

import orbax.checkpoint as ocp
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.errors import UserError

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
everywhere = NamedSharding(mesh, PartitionSpec())

def state(seed):
    kernel = np.random.default_rng(seed).standard_normal((64, 65)).astype(np.float32)
    return {"kernel": jax.make_array_from_callback(kernel.shape, everywhere, lambda part: kernel[part])}

def assert_restored(restored, seed):
    assert restored["kernel"].sharding == everywhere
    np.testing.assert_array_equal(restored["kernel"], state(seed)["kernel"])
"""


def run_two(script, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + textwrap.dedent(script), *map(str, (port, index, folder, SECONDS))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(stderr for _, stderr in outputs)
    return [[line for line in stdout.splitlines() if not line.startswith("[Gloo]")] for stdout, _ in outputs]


def test_two_processes_save_and_restore_as_one(tmp_path):
    first, second = run_two(
        """
        with Checkpoints(folder, keep_latest=2) as checkpoints:
            checkpoints.save(1, state(1), {"seconds": index}, {"validation_top1": 0.5})
            checkpoints.save(2, state(2), {"seconds": index})
            checkpoints.wait()
            checkpoints.check()
            written = (folder / "2").stat().st_mtime_ns
            # Process 0's content is the same as it was, the other's is not.
            checkpoints.save(2, state(2), {"seconds": 3 * index})
            checkpoints.wait()
            assert (folder / "2").stat().st_mtime_ns == written
            checkpoints.save(2, state(3), {"seconds": 10 + index})
            assert_restored(checkpoints.restore(None, state(0))[0], 3)
        with Checkpoints(folder, keep_latest=2) as checkpoints:
            restored, progress = checkpoints.restore(None, state(0))
            assert_restored(restored, 3)
            print(checkpoints.steps(), checkpoints.best_step(), progress, checkpoints.progress(1))
        """,
        tmp_path,
    )
    assert first == second == ["[1, 2] 1 {'seconds': 10} {'seconds': 0}"]
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_what_is_damaged_for_one_process_is_so_for_both(tmp_path):
    first, second = run_two(
        """
        read = ocp.StandardCheckpointHandler.restore

        def fail(*arguments, **options):
            raise OSError("the cable is loose")

        with Checkpoints(folder, keep_latest=2) as checkpoints:
            checkpoints.save(1, state(1), {"seconds": 1})
            for step in (2, 3):
                checkpoints.save(step, state(step), {"seconds": step})
                checkpoints.wait()
                if index == step - 2:  # each of them once
                    ocp.StandardCheckpointHandler.restore = fail
                try:
                    checkpoints.restore(step, state(0))
                except UserError as error:
                    print(str(error).partition(f"the checkpoint of step {step} is damaged: ")[2])
                ocp.StandardCheckpointHandler.restore = read
                restored, progress = checkpoints.restore(None, state(0))
                print(progress)
                assert_restored(restored, 1)
            checkpoints.save(4, state(4), {"seconds": 4})
        """,
        tmp_path,
    )
    broken, other = (
        "OSError: the cable is loose. Choose another step",
        "another process cannot read it. Choose another step",
    )
    assert first == [broken, "{'seconds': 1}", other, "{'seconds': 1}"]
    assert second == [other, "{'seconds': 1}", broken, "{'seconds': 1}"]
    assert sorted(os.listdir(tmp_path)) == ["1", "4", "damaged-2", "damaged-3"]
