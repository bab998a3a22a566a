"""The launchers: scripts run with stand-ins for what they start, manifests are held against their schemas."""

import ast
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from inception_jax import main

LAUNCH = Path(__file__).parent.parent / "launch"
# Stands for inception_jax.main: says how it was started, then does what its argument --act=PROCESS:ACTION says.
STAND_IN = """
import os, signal, sys, time

process = next(arg.split("=")[1] for arg in sys.argv if arg.startswith("--process_id="))
record = open(f"process{process}", "w", buffering=1)
received = []

def stop(number, frame):
    received.append(number)
    print("signal", signal.Signals(number).name, file=record)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("arguments", sys.argv[1:], file=record)
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), file=record)
print("started", file=record)
action = next((arg.split(":")[1] for arg in sys.argv if arg.startswith(f"--act={process}:")), "exit 0").split()
if action[0] == "kill":
    os.kill(os.getpid(), int(action[1]))
limit = time.monotonic() + 60  # nothing stays behind when a test fails
while action[0] in ("wait", "hang") and not (received and action[0] == "wait") and time.monotonic() < limit:
    time.sleep(0.02)
if action[0] == "wait":  # as one that saves
    time.sleep(0.1)
elif action[0] == "exit" and len(action) == 3:
    time.sleep(float(action[2]))
sys.exit(int(action[1]))
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Of programs that find the stand-in where they start the training command."""
    package = tmp_path / "stand_in" / "inception_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    return os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(package.parent), "PATH": path, "GRACE": "1"}


def program(tmp_path, name, text):
    """A shell script on the environment's PATH."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def local(environment, *arguments):
    command = [str(LAUNCH / "local.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def lines(process):
    return Path(f"process{process}").read_text().splitlines()


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch"])
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sysconfig.get_path("scripts"), "shellcheck")
    result = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_local_starts_every_process_with_its_number_and_the_same_arguments(environment):
    result = local(environment, "3", "--config=a file.py", "--config.model.name=", "*")
    assert (result.returncode, result.stderr) == (0, "")
    coordinators = set()
    for process in range(3):
        arguments = ast.literal_eval(lines(process)[0].removeprefix("arguments "))
        assert arguments[:3] == ["--config=a file.py", "--config.model.name=", "*"]
        assert arguments[4:] == ["--num_processes=3", f"--process_id={process}"]
        coordinators.add(arguments[3])
    (coordinator,) = coordinators
    assert coordinator.startswith("--coordinator=127.0.0.1:")


@pytest.mark.parametrize(
    ("actions", "code"),
    [
        (["0:exit 5", "1:exit 3 0.5"], 3),  # the cause, not what follows from it
        (["0:exit 5", "1:exit 0"], 5),
        (["0:exit 2", "1:exit 2"], 2),
        (["0:exit 75", "1:exit 75 1.5"], 75),  # whoever has saved does not end those that have not
        (["0:exit 75", "1:exit 5"], 5),
        (["0:kill 9", "1:exit 5 0.5"], 137),
        (["0:wait 75", "1:exit 4"], 4),  # the other one is ended
        (["0:hang 0", "1:exit 4"], 4),  # and killed where it does not end
    ],
)
def test_local_exits_with_the_code_of_the_process_that_failed(environment, actions, code):
    result = local(environment, "2", *(f"--act={action}" for action in actions))
    assert result.returncode == code, result.stderr


def test_local_says_which_process_failed(environment):
    result = local(environment, "2", "--act=0:wait 75", "--act=1:exit 3")
    assert result.stderr == "local.sh: process 1 ended with exit code 3\nlocal.sh: stopping the others\n"
    assert lines(0)[-1] == "signal SIGTERM"


# Where the tests run in the background, their children ignore what bash then cannot trap.
HEED_SIGNALS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("number", "received", "code"),
    [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "SIGINT", 130), (signal.SIGHUP, "SIGTERM", 75)],
)
def test_local_hands_a_signal_to_every_process_once(environment, number, received, code):
    actions = [f"--act={process}:wait {code}" for process in range(2)]
    # With a process group of its own, to which the signal goes as Ctrl-C does from a terminal.
    command = [sys.executable, "-c", HEED_SIGNALS, LAUNCH / "local.sh", "2", *actions]
    launcher = subprocess.Popen(command, env=environment, process_group=0)
    try:
        deadline = time.monotonic() + 30
        while not all(Path(f"process{i}").exists() and "started" in lines(i) for i in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(launcher.pid, number)
        assert launcher.wait(30) == code
    finally:
        launcher.kill()
    for process in range(2):
        assert lines(process)[3:] == [f"signal {received}"]


@pytest.mark.parametrize("named", [True, False], ids=["CUDA_VISIBLE_DEVICES", "nvidia-smi"])
def test_local_splits_the_gpus_over_the_processes(environment, tmp_path, named):
    environment.pop("JAX_PLATFORMS")
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if named:
        environment["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    else:
        program(tmp_path, "nvidia-smi", "seq 0 3")
    assert local(environment, "2").returncode == 0
    assert [lines(process)[1] for process in range(2)] == ["gpus 0,1", "gpus 2,3"]
    result = local(environment, "3")
    assert result.returncode == 2
    assert "4 GPUs cannot be divided among 3 processes" in result.stderr
    assert local(environment | {"JAX_PLATFORMS": "cpu"}, "3").returncode == 0


def test_local_runs_on_the_cpu_where_there_is_no_gpu(environment, tmp_path):
    environment.pop("JAX_PLATFORMS")
    program(tmp_path, "nvidia-smi", "echo 'no driver'; exit 9")
    assert local(environment | {"CUDA_VISIBLE_DEVICES": "-1"}, "2").returncode == 0
    assert lines(0)[1] == "gpus -1"
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    assert local(environment, "2").returncode == 0
    assert lines(0)[1] == "gpus None"


@pytest.mark.parametrize("arguments", [(), ("0",), ("two",), ("--config=a.py",)])
def test_local_refuses_what_is_no_number_of_processes(environment, arguments):
    result = local(environment, *arguments)
    assert result.returncode == 2
    assert "launch/local.sh 2 --config=" in result.stdout + result.stderr


@pytest.fixture
def slurm(environment, tmp_path):
    """Runs the batch script with an srun that exits with a code; returns the result and scontrol's calls."""

    def run(code, *arguments, **variables):
        program(tmp_path, "srun", f'printf "%s\\n" "$@" > srun.txt\nexit {code}')
        program(tmp_path, "scontrol", 'echo "$@" >> scontrol.txt')
        Path("scontrol.txt").write_text("")
        variables = environment | {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8"} | variables
        command = ["bash", LAUNCH / "slurm.sbatch", *arguments]
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        return result, Path("scontrol.txt").read_text()

    return run


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 75, 130, 134, 137, 253])
def test_slurm_requeues_a_job_that_can_go_on(slurm, code):
    result, calls = slurm(code)
    assert result.returncode == code
    assert calls == ("requeue 42\n" if code in (5, 75, 134, 137, 253) else "")


def test_slurm_bounds_the_restarts(slurm):
    result, calls = slurm(75, SLURM_RESTART_COUNT="19")
    assert (result.stdout, calls) == ("exit code 75: requeued, restart 20 of at most 20\n", "requeue 42\n")
    result, calls = slurm(75, SLURM_RESTART_COUNT="20")
    assert calls == ""
    assert "not requeued after 20 restarts" in result.stdout
    _, calls = slurm(75, SLURM_RESTART_COUNT="20", MAX_RESTARTS="21")
    assert calls == "requeue 42\n"


def test_slurm_starts_the_command_on_every_task(slurm):
    slurm(0, "--config=a file.py", "--workdir=/shared/run")
    options, command = Path("srun.txt").read_text().split(f"{sys.executable}\n")
    assert command == "-m\ninception_jax.main\n--multihost\n--config=a file.py\n--workdir=/shared/run\n"
    assert {"--kill-on-bad-exit=0", "--cpus-per-task=8"} <= set(options.splitlines())


def test_a_cancelled_slurm_job_does_not_come_back(environment, tmp_path):
    """scancel sends SIGTERM to the processes, which save and exit with 75, and to the batch script."""
    program(tmp_path, "srun", "kill -TERM $PPID; exit 75")
    program(tmp_path, "scontrol", "touch requeued")
    result = subprocess.run(["bash", LAUNCH / "slurm.sbatch"], env=environment | {"SLURM_JOB_ID": "42"}, timeout=60)
    assert result.returncode == -signal.SIGTERM
    assert not Path("requeued").exists()


def test_slurm_is_asked_for_what_a_restart_needs():
    script = (LAUNCH / "slurm.sbatch").read_text()
    directives, _, _ = script.partition("set -euo pipefail")
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in directives.splitlines() if "#SBATCH" in line
    )
    assert options["signal"] == "TERM@120"  # "B:" would keep it from the processes
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert script.count("#SBATCH") == len(options)  # sbatch ignores those after the first command


# JobSet's own fields: those of its custom resource definition in kubernetes-sigs/jobset,
# config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml, without those that are deprecated or need a feature gate.
NAMES = {"type": "array", "items": {"type": "string"}}


def an_object(*required, **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


JOB_SET = an_object(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata={"type": "object", "required": ["name"]},
    spec=an_object(
        coordinator=an_object(
            "replicatedJob",
            replicatedJob={"type": "string"},
            jobIndex={"type": "integer"},
            podIndex={"type": "integer"},
        ),
        failurePolicy=an_object(
            maxRestarts={"type": "integer"},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={
                "type": "array",
                "items": an_object(
                    "name", "action",
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                    onJobFailureReasons=NAMES,
                    targetReplicatedJobs=NAMES,
                ),
            },
        ),
        managedBy={"type": "string"},
        network=an_object(
            enableDNSHostnames={"type": "boolean"},
            publishNotReadyAddresses={"type": "boolean"},
            subdomain={"type": "string"},
        ),
        replicatedJobs={
            "type": "array",
            "items": an_object(
                "name", "template",
                name={"type": "string"},
                groupName={"type": "string"},
                replicas={"type": "integer"},
                template=an_object(metadata={"type": "object"}, spec={"type": "object"}),
            ),
        },
        successPolicy=an_object("operator", operator={"enum": ["All", "Any"]}, targetReplicatedJobs=NAMES),
        suspend={"type": "boolean"},
        ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest():
    """The volume claim, the JobSet, its Job, and the pod of that."""
    claim, job_set = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return claim, job_set, job, job["template"]["spec"]


@pytest.mark.parametrize("version", ["1.31", "1.36"])
def test_the_manifest_is_what_kubernetes_accepts(manifest, version):
    claim, job_set, job, _ = manifest
    jsonschema.validate(job_set, JOB_SET)
    kubernetes_validate.validate(claim, version, strict=True)
    resource = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "worker"}, "spec": job}
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_job_with_a_pod_failure_policy_is_as_the_api_demands(manifest):
    """What the Job's validation asks for beyond its schema."""
    _, _, job, pod = manifest
    (rule,) = job["podFailurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never"
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]


def test_the_pods_know_how_many_they_are_and_where_the_first_one_is(manifest):
    _, job_set, job, pod = manifest
    (replicated,) = job_set["spec"]["replicatedJobs"]
    (container,) = pod["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert int(variables["INCEPTION_JAX_NUM_PROCESSES"]) == job["completions"] == job["parallelism"]
    assert (replicated["replicas"], job["completionMode"]) == (1, "Indexed")
    name = job_set["metadata"]["name"]  # of the headless service, too
    host, _ = variables["INCEPTION_JAX_COORDINATOR"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"


def test_the_pods_find_their_volumes_and_a_config(manifest):
    claim, _, _, pod = manifest
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    paths = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert paths["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert paths["/work"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    config, workdir, *_ = main.parse_flags(container["args"])
    assert config.data.name == "cifar10"
    assert workdir.is_relative_to("/work")
