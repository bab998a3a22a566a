"""Several processes that train one network, on 127.0.0.1, against a single one."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from programs import TRAINER
from runs import final_state, rows, summary

from inception_jax import process
from inception_jax.distributed import multihost
from inception_jax.errors import UserError

SECONDS = 240  # after which a process of these tests is ended
FIELDS = {
    "batch_size": 64,  # 20 steps an epoch
    "compute_dtype": "float64",
    "num_epochs": 1,
    "model.name": "simple_cnn",
    "model.norm": "batch",
    "model.stage_features": (4,),
    "data.augment.pad_and_crop": 1,
    "schedule.learning_rate": 0.01,
    "checkpoint.every_steps": 5,
    "log.every_seconds": 0.0,
    "log.tensorboard": False,
}


@contextlib.contextmanager
def started(folder, digits, *, processes=1, program=("-c", TRAINER), own=(), **fields):
    """The processes of a run, each with one device; whatever is left of them is ended.

    Args:
      own: for each process further arguments, or variables of its environment
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *program, "--config=googlenet_digits", f"--workdir={folder}"]
    command += [f"--config.{name}={value}" for name, value in {**FIELDS, **fields}.items()]
    command.append(f"--config.data.directory={digits}")
    running = []
    try:
        for index in range(processes):
            of_several = {
                "INCEPTION_JAX_COORDINATOR": f"127.0.0.1:{port}",
                "INCEPTION_JAX_NUM_PROCESSES": str(processes),
                "INCEPTION_JAX_PROCESS_ID": str(index),
            }
            with (folder.parent / f"{folder.name}.{index}.log").open("w") as output:
                environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | (of_several if processes > 1 else {})
                arguments, variables = own[index] if own else ((), {})
                running.append(subprocess.Popen([*command, *arguments], env=environment | variables, stderr=output))
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def log(folder, index=0):
    return (folder.parent / f"{folder.name}.{index}.log").read_text()


def train(folder, digits, **options):
    with started(folder, digits, **options) as running:
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == 0, log(folder, index)


def wait_for(condition, what):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """A run by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(folder, digits)
    return folder


def assert_agree(folder, expected):
    """The same batches, parameters but for rounding, and the very same evaluation."""
    ours, theirs = summary(folder), summary(expected)
    assert ours["steps"] == theirs["steps"] == 20
    for split in ("validation", "test"):
        assert ours[split]["count"] == theirs[split]["count"]
        assert ours[split]["top1"] == theirs[split]["top1"]
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-9)
    (row,), (expected_row,) = rows(folder), rows(expected)
    assert row["train_top1"] == expected_row["train_top1"]
    with jax.enable_x64(True):
        leaves, expected_leaves = final_state(folder)[1], final_state(expected)[1]
    for (path, leaf), (_, expected_leaf) in zip(leaves, expected_leaves, strict=True):
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, expected_leaf, rtol=0, atol=1e-8, err_msg=str(path))


def test_two_processes_equal_one(alone, digits, tmp_path):
    often = {"checkpoint.every_minutes": 1e-5, "checkpoint.keep_latest": 100}  # by the first one's clock, for both
    train(tmp_path / "run", digits, processes=2, program=("-m", "inception_jax.main"), **often)
    assert_agree(tmp_path / "run", alone)
    assert "2 processes" in log(tmp_path / "run")
    assert "epoch" not in log(tmp_path / "run", 1)  # the first one alone speaks
    saved = {int(step.name) for step in (tmp_path / "run" / "checkpoints").iterdir()}
    assert len(saved - set(range(0, 21, FIELDS["checkpoint.every_steps"]))) > 2
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(digits, tmp_path):
    folder = tmp_path / "run"
    longer = {"num_epochs": 12, "checkpoint.every_steps": 20}  # than it takes to look at the folder and to kill
    with started(folder, digits, processes=2, **longer) as (first, second):
        wait_for(lambda: (folder / "checkpoints" / "20").exists(), "no checkpoint was saved")
        second.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert first.wait(60) == process.LOST
        assert time.monotonic() - killed < 60
    assert "error: process 0 of 2 ends: no heartbeat from process 1 on" in log(folder)
    assert "Start all processes again to continue" in log(folder)
    train(folder, digits, processes=2, **longer)
    assert re.search(r"continues after step \d+0 of 240", log(folder))
    assert summary(folder)["steps"] == 240


@pytest.mark.slow
def test_the_first_process_is_missed_too(digits, tmp_path):
    folder = tmp_path / "run"
    with started(folder, digits, processes=2, num_epochs=1000) as (first, second):
        wait_for(lambda: (folder / "checkpoints" / "20").exists(), "no checkpoint was saved")
        first.send_signal(signal.SIGKILL)
        assert second.wait(60) == process.LOST
    assert "error: process 1 of 2 ends: JAX's distributed runtime failed; most likely process 0 on" in log(folder, 1)


@pytest.mark.slow
def test_a_request_to_stop_reaches_all_and_the_number_of_processes_may_change(alone, digits, tmp_path):
    """Two processes, one of which is asked to stop, then one, then two again: as one all the time."""
    folder = tmp_path / "run"
    with started(folder, digits, processes=2) as running:
        wait_for(lambda: "step 1/20" in log(folder), log(folder))
        running[1].send_signal(signal.SIGTERM)
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == os.EX_TEMPFAIL, log(folder, index)
    assert "and saved: the same command continues from there" in log(folder)
    with started(folder, digits) as (process,):
        wait_for(lambda: "  step " in log(folder), log(folder))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) in (0, os.EX_TEMPFAIL), log(folder)
    train(folder, digits, processes=2)
    assert_agree(folder, alone)


@pytest.mark.slow
def test_one_process_may_be_half_a_minute_behind_the_others(digits, tmp_path):
    """A collective of a CPU's devices would give up after 30 s."""
    late = """
import sys, time
from inception_jax import main
from inception_jax.distributed import multihost
from inception_jax.train import start
prepare = start.prepare_folder
def prepare_late(*args):
    time.sleep(40 * multihost.is_first())
    prepare(*args)
start.prepare_folder = prepare_late
sys.exit(main.main())
"""
    train(tmp_path / "run", digits, processes=2, program=("-c", late))
    assert summary(tmp_path / "run")["steps"] == 20


def joined_by_two(script, environments):
    """What two processes print that run a script, each in an environment of its own."""
    common = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=common | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], "\n".join(stderr for _, stderr in outputs)
    return [[line for line in stdout.splitlines() if not line.startswith("[Gloo]")] for stdout, _ in outputs]


def of_slurm(job, rank):
    variables = {"JOB_ID": job, "STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1}
    variables |= {"NTASKS": 2, "PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{name}": str(value) for name, value in variables.items()}


def of_open_mpi_4(job, rank):
    ranks = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
    return ranks | {"OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1"}


def of_open_mpi_5(job, rank):
    """As mpirun 5.0.11 has it."""
    ranks = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
    ranks |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_VERSION": "5.0.11", "PMIX_RANK": str(rank)}
    return ranks | {"PMIX_NAMESPACE": f"prterun-some-host-{job}@1"}


@pytest.mark.parametrize("launcher", [of_slurm, of_open_mpi_4, of_open_mpi_5])
def test_processes_find_each_other_by_what_their_launcher_says(launcher):
    for job in range(os.getpid() % 4096, 10_000, 37):  # it decides the coordinator's port
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", 61440 + job % 4096))
            break
    script = """
from inception_jax.distributed import multihost
with multihost.joined(multihost.Group()):
    print(multihost.index(), multihost.count())
"""
    assert joined_by_two(script, [launcher(job, rank) for rank in range(2)]) == [["0 2"], ["1 2"]]


def test_who_has_left_is_not_taken_for_dead():
    """The first process alone writes the report, for longer than after which a silent one counts as dead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"""
import os, time
from inception_jax.distributed import multihost
from inception_jax.distributed import watch
watch.BEAT_SECONDS, watch.SILENT_SECONDS = 0.2, 4
with multihost.joined(multihost.Group("127.0.0.1:{port}", 2, int(os.environ["RANK"]))):
    time.sleep(7 * multihost.is_first())
    print("done")
"""
    assert joined_by_two(script, [{"RANK": "0"}, {"RANK": "1"}]) == [["done"], ["done"]]


def test_what_one_process_cannot_do_is_told_to_the_others(digits, tmp_path):
    folder = tmp_path / "run"
    with started(folder, digits, processes=2, num_devices=1) as running:
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == 2, log(folder, index)
            assert "num_devices=1 is not allowed: 2 processes use all of their 2 devices: set 0" in log(folder, index)
            assert "Traceback" not in log(folder, index)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"coordinator": "10.0.0.1:1"}, "go together: give all three, or none"),
        ({"coordinator": "10.0.0.1", "num_processes": 2, "process_id": 0}, "is not HOST:PORT, e.g. 10.0.0.1:12345"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "with --num_processes=2 it must be from 0 to 1"),
    ],
)
def test_wrong_groups_are_named(group, message):
    with pytest.raises(UserError, match=message):
        multihost.Group(**group)


def pictures_of(folder, seed):
    generator = np.random.default_rng(seed)
    for number in range(40):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        # The last one alone differs, and its size does not.
        image = np.full((8, 8, 3), number if number < 39 else generator.integers(256), np.uint8)
        Image.fromarray(image).save(place / f"{number}.bmp")
    return folder


@pytest.mark.parametrize(
    "kind", [pytest.param("folder", marks=pytest.mark.slow), pytest.param("config", marks=pytest.mark.slow), "data"]
)
def test_processes_that_differ_end_before_anything_is_written(digits, tmp_path, kind):
    folder = tmp_path / "run"
    fields, own, differences = {
        "folder": (
            {},
            [[], [f"--workdir={tmp_path / 'other'}"]],
            [
                f"the run's folder is {folder} in process 0 on",
                f"{tmp_path / 'other'} (without the file that process 0 wrote",
            ],
        ),
        "config": (
            {},
            [[], ["--config.schedule.learning_rate=0.02"]],
            ["schedule.learning_rate is 0.01 in process 0 on", "0.02 in process 1 on"],
        ),
        "data": (
            {"data.name": "image_folder", "data.image_size": 8, "batch_size": 8, "data.splits.test": ""}
            | {"evaluate.final_splits": "validation"},
            [[f"--config.data.folder={pictures_of(tmp_path / str(i), i)}"] for i in range(2)],
            ["the data's fingerprint is"],
        ),
    }[kind]
    if kind == "data":  # prepared by each for itself, as on two machines
        own = [[*own[i], f"--config.data.directory={tmp_path / f'data{i}'}"] for i in range(2)]
    with started(folder, digits, processes=2, own=[(more, {}) for more in own], **fields) as running:
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == 2, log(folder, index)
    for index in range(2):
        # On a busy machine others say for whom they wait.
        (line,) = [line for line in log(folder, index).splitlines() if line.startswith("error: ")]
        assert "the processes do not agree: " in line
        assert "Traceback" not in log(folder, index)
        for difference in differences:
            assert difference in line
    assert not folder.exists()
    assert not (tmp_path / "other").exists()


LATE = """
import sys, time
from inception_jax import main
from inception_jax.distributed import multihost
from inception_jax.train import start
prepare = start.prepare_folder
def prepare_late(*args):
    while multihost.is_first():
        time.sleep(1)
start.prepare_folder = prepare_late
sys.exit(main.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_is_answered_while_a_process_waits(digits, tmp_path, asked):
    """Before the first step there is nothing to save, so that all end at once."""
    folder = tmp_path / "run"
    with started(folder, digits, processes=2, program=("-c", LATE)) as running:
        wait_for(folder.exists, log(folder))  # for as long as they compare what they were given
        wait_for(lambda: not folder.exists() or not list(folder.glob(".processes-*")), log(folder))
        time.sleep(3)
        running[asked].send_signal(signal.SIGTERM)
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == os.EX_TEMPFAIL, log(folder, index)
    told = log(folder, 1 - asked)
    assert f"process {1 - asked} of 2 ends: process {asked} on" in told
    assert "ended: stopped by SIGTERM" in told
    assert "Traceback" not in log(folder, 0) + log(folder, 1)


@pytest.mark.slow
def test_a_mistake_of_one_process_ends_the_others_with_its_code(digits, tmp_path):
    folder = tmp_path / "run"
    own = [([], {}), ([f"--config.data.directory={tmp_path}", f"--config.data.archives={tmp_path / 'nowhere'}"], {})]
    with started(folder, digits, processes=2, own=own, **{"data.name": "mnist"}) as running:
        for index, process in enumerate(running):
            assert process.wait(SECONDS) == 2, log(folder, index)


@pytest.mark.slow
def test_a_run_that_stands_still_shows_its_stacks_and_goes_on_later(digits, tmp_path):
    """Such as at a disk that does not answer; in two processes of which one hangs, both end."""
    hangs = """
import os, sys, time
from inception_jax import main
from inception_jax.train import batches
rows = batches.rows_of
def rows_or_not(positions, part, step):
    while step == 12 and os.environ.get("INCEPTION_JAX_PROCESS_ID") in (None, "1"):
        time.sleep(1)
    return rows(positions, part, step)
batches.rows_of = rows_or_not
sys.exit(main.main())
"""
    folders = {processes: tmp_path / f"of_{processes}" for processes in (1, 2)}
    fields = {"program": ("-c", hangs), "log.watchdog_minutes": 0.5}
    with contextlib.ExitStack() as stack:  # side by side, since they do nothing for half a minute
        running = {
            processes: stack.enter_context(started(folder, digits, processes=processes, **fields))
            for processes, folder in folders.items()
        }
        for processes, folder in folders.items():
            for index, process in enumerate(running[processes]):
                assert process.wait(SECONDS) == 5, log(folder, index)
    for processes, folder in folders.items():
        last = log(folder, processes - 1)
        assert "rows_or_not" in last  # the function that hangs
        assert "no step completed and no batch evaluated for 0.5 minutes" in last
        train(folder, digits)
        assert summary(folder)["steps"] == 20
