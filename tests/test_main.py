"""The shell: what can be typed, and what is answered when it is typed wrong."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax import commands, main
from inception_jax.config.files import shipped_configs
from inception_jax.errors import LostError, UserError
from inception_jax.process import NOT_WRITTEN
from inception_jax.runs import run

CONFIG = """
from inception_jax.config import default_config

def get_config():
    config = default_config()
    config.batch_size = 64
    config.num_epochs = 2
    config.num_devices = 1
    config.model.name = "simple_cnn"
    config.model.norm = "none"
    config.model.stage_features = (4,)
    config.log.tensorboard = False
    return config
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, digits):
    """A folder of one's own with one config file, where the shell stands."""
    (tmp_path / "small.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    return tmp_path


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_is_valid_and_builds_its_network(name):
    from inception_jax.config import validate
    from inception_jax.experiment import build_model

    config, workdir, *_ = main.parse_flags([f"--config={name}"])
    validate(config)
    if config.model.name:  # else that of the weights it starts from
        build_model(config, 10)
    assert workdir == Path("runs", name)


def test_any_field_can_be_set(folder):
    config, workdir, *_ = main.parse_flags(
        [
            "--config=small.py", "--workdir=elsewhere", "--config.schedule.learning_rate=0.05",
            "--config.optimizer.nesterov=true", "--config.model.norm=batch", "--config.model.dropout_rate=0.25",
            "--config.evaluate.splits=validation,test", "--config.schedule.boundaries=(60,120)",
            "--config.data.splits.train=train[:80%]", "--config.profile",
        ]
    )  # fmt: skip
    assert config.profile is True
    assert workdir == Path("elsewhere")
    assert config.schedule.learning_rate == 0.05
    assert config.optimizer.nesterov is True
    assert (config.model.norm, config.model.dropout_rate) == ("batch", 0.25)
    assert config.evaluate.splits == ("validation", "test")
    assert config.schedule.boundaries == (60, 120)
    assert config.data.splits.train == "train[:80%]"


def test_another_network_starts_from_its_own_defaults(folder):
    config, *_ = main.parse_flags(["--config=small.py", "--config.model.name=googlenet", "--config.model.stem=small"])
    options = {key: value for key, value in config.model.items() if value is not None}
    assert options == {"name": "googlenet", "stem": "small"}


WRONG = [
    ([], "--config=NAME_OR_FILE is missing"),
    (["--config=googlenet_cifar"], "there is no config 'googlenet_cifar': did you mean googlenet_cifar10?"),
    (["--config=no/such.py"], "there is no config 'no/such.py'"),
    (["--config=small.py", "--config.scheduel.name=step"], "did you mean --config.schedule.name?"),
    (["--config=small.py", "--config.batch_size=many"], "batch_size=many is not allowed: it must be a whole number"),
    (["--config=small.py", "--config.schedule=step"], "--config.schedule is a section"),
    (["--config=small.py", "--wrokdir=x"], "unknown flag --wrokdir: did you mean --workdir?"),
    (["--config=small.py", "stray"], "unexpected argument 'stray'"),
    (["--config=broken.py"], "config file broken.py, line 2: NameError"),
    (["--config=small.py", "--config.schedule.name=cosin"], "unknown schedule.name 'cosin'. Did you mean 'cosine'?"),
    (["--config=small.py", "--config.optimizer.name=sdg"], "unknown optimizer.name 'sdg'. Did you mean 'sgd'?"),
    (["--config=small.py", "--config.model.name=googelnet"], "unknown model 'googelnet'. Did you mean 'googlenet'?"),
    (["--config=small.py", "--config.model.residual=identity"], "unknown option of simple_cnn 'residual'"),
    (["--config=small.py", "--config.model.num_classes=5"], "model.num_classes cannot be set: it follows from"),
    (["--config=small.py", "--config.data.pad=-1"], "data.pad=-1 is not allowed: it must be from 0 to 1024 pixels"),
    (["--config=small.py", "--config.optimizer.weight_decay_layers=fcc"], "layers 'fcc'. Did you mean 'fc'?"),
    (["--config=small.py", "--config.data.name=minst"], "unknown data set 'minst'. Did you mean 'mnist'?"),
    (["--config=small.py", "--config.data.splits.train=trian"], "trian"),
    (["--config=small.py", "--config.batch_size=0"], "batch_size=0 is not allowed: it must be at least 1"),
    (["--config=small.py", "--config.accumulation_steps=3"], "does not divide into accumulation_steps=3"),
    (["--config=small.py", "--config.num_devices=8", "--config.batch_size=60"], "is not divisible by 8, the number"),
    (["--config=small.py", "--config.evaluate.watch=validation_top3"], "unknown metric in evaluate.watch"),
    (["--config=small.py", "--config.evaluate.stop_at=94"], "watch='validation_top1', which is from 0 to 1"),
    (["--config=small.py", "--config.evaluate.splits=dev"], "unknown split in evaluate.splits 'dev'"),
    (["--config=small.py", "--config.evaluate.splits=(1,2)"], "evaluate.splits=(1, 2) is not allowed"),
    (["--config=small.py", "--config.schedule.boundaries=(a,b)"], "schedule.boundaries=('a', 'b') is not allowed"),
    (["--config=small.py", "--config.data.std=(0,0,0)"], "it must be a number above 0 for each channel"),
    (["--config=small.py", "--config.data.std=(1,1,1)"], "data.std has 3 numbers, but the images have 1 channel"),
    (["--config=small.py", "--config.data.augment.random_resized_crop=(x,y)"], "two shares of the area"),
    (["--config=small.py", "--workdir=small.py/run"], "cannot write the run's folder"),
    (["--config=small.py", "--config.data.directory=small.py"], "cannot write the data set to small.py"),
    (["--config=small.py", "--config.data.name=mnist", "--config.data.archives=x"], "archives='x' is not a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_mistakes_are_answered_in_one_line(folder, capsys, argv, message):
    (folder / "broken.py").write_text("def get_config():\n    return undefined\n")
    assert main.main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in line
    assert not (folder / "runs").exists()


def test_a_loss_that_is_not_finite_has_its_own_exit_code(folder, capsys):
    flags = [
        "--config.schedule.learning_rate=1e30",
        "--config.model.stage_features=(4,8)",
    ]  # fewer layers only fall silent
    assert main.main(["--config=small.py", *flags]) == 3
    assert "error: the loss of step" in capsys.readouterr().err


def test_training_leaves_the_whole_run_folder_and_finishes_again_at_once(folder, reports, capsys):
    assert main.main(["--config=small.py", "--config.log.tensorboard=true"]) == 0
    shown = capsys.readouterr().err
    for expected in ("device: 1 x cpu", "data: digits", "parameters: ", "first step: ", "estimate: ", "epoch 2/2 done"):
        assert expected in shown
    names = {path.name.partition(".")[0] for path in (folder / "runs" / "small").iterdir()}
    assert names >= {"config", "metrics", "summary", "report", "events", "checkpoints", "log"}
    assert main.main(["--config=small.py", "--config.log.tensorboard=true"]) == 0
    assert main.main(["--config=small.py", "--config.num_epochs=1"]) == 2
    assert "num_epochs was 2, now 1" in capsys.readouterr().err


def test_deterministic_is_said_to_xla_before_it_looks(folder):
    """What the compiler goes by is in its own dump; it reads its flags once."""
    script = """
import sys
from inception_jax import main, train
def compile_something(*arguments, **options):
    import jax
    jax.jit(lambda x: x + 1)(1.0)
train.train_and_evaluate = compile_something
sys.exit(main.main(["--config=small.py", "--config.deterministic=true"]))
"""
    flags = {"XLA_FLAGS": f"--xla_dump_to={folder / 'dump'}", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    subprocess.run([sys.executable, "-c", script], env=os.environ | flags, check=True)
    seen = [path.read_text() for path in (folder / "dump").glob("*debug_options")]
    assert seen
    assert all("xla_gpu_deterministic_ops: true" in options for options in seen)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and a function that gives it more."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place, lambda: subprocess.run([*mount, "remount,size=64m", "tmpfs", place], check=True)
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_ends_the_run_with_a_clear_line_until_there_is_room(folder, small_disk):
    disk, enlarge = small_disk
    command = [sys.executable, "-m", "inception_jax.main", "--config=small.py", f"--workdir={disk / 'run'}"]
    command += ["--config.checkpoint.every_steps=1", "--config.checkpoint.keep_latest=1000", "--config.num_epochs=4"]
    command += [
        "--config.log.tensorboard=true",
        "--config.data.splits.train=train[:640]",
        "--config.log.progress=lines",
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == NOT_WRITTEN, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "could not be written" in ended.stderr or "cannot write" in ended.stderr
    assert "Traceback" not in ended.stderr
    step = run.load_run(disk / "run", "latest").step
    assert step >= 1

    enlarge()
    with subprocess.Popen(
        [*command, "--config.checkpoint.keep_latest=1", "--config.checkpoint.every_steps=0"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output = process.stderr.read()
        assert process.wait() == 0, output
    assert f"continues after step {step} of" in output


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow(folder):
    """After 10,000 steps, with evaluations and checkpoints, at most 5 % more than after 1,000."""
    command = [sys.executable, "-m", "inception_jax.main", "--config=small.py", "--config.num_epochs=1000"]
    command += ["--config.data.splits.train=train[:640]", "--config.evaluate.every_epochs=50"]  # of 10 steps
    command += ["--config.checkpoint.every_steps=250", "--config.log.every_seconds=0", "--config.log.tensorboard=true"]
    resident = {}
    with subprocess.Popen([*command, "--config.log.progress=lines"], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if step := re.search(r"step (\d+)/10000 ", line):
                resident[int(step[1])] = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])  # pages
        assert process.wait() == 0
    assert max(resident) > 9_900
    assert resident[max(resident)] < 1.05 * resident[min(step for step in resident if step >= 1_000)]


def test_ctrl_c_saves_and_says_how_to_go_on(folder):
    """A process of its own, interrupted as a terminal would."""
    command = [sys.executable, "-m", "inception_jax.main", "--config=small.py", "--config.num_epochs=100000"]
    command += ["--config.log.every_seconds=0.1", "--config.data.splits.train=train[:128]"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "done" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(120) == 130
    (step,) = re.findall(r"stopped after step (\d+) of 200000 and saved: the same command continues from there", rest)
    assert "Traceback" not in rest
    assert (folder / "runs" / "small" / "checkpoints" / step).is_dir()


def test_help_has_examples_and_does_not_wait_for_jax():
    code = """if True:
        import contextlib, io, re, sys
        from inception_jax import commands

        def shown(*argv):
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
                assert commands.main([*argv]) == 0
            return output.getvalue()

        names = re.findall("^    ([a-z]+)  ", shown("--help"), re.MULTILINE)
        assert {"train", "evaluate", "compare", "configs"} < {*names}
        for argv in (["--help"], *([name, "--help"] for name in names)):
            text = shown(*argv)
            assert "inception-jax" in text and "examples:\\n  inception-jax" in text, argv
        assert "googlenet_cifar10" in shown("configs")
        assert "jax" not in sys.modules
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_unknown_commands_are_named(capsys):
    assert commands.main(["trian"]) == 2
    assert "unknown command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_parse_flags_can_be_called_again(folder):
    with pytest.raises(UserError):
        main.parse_flags(["--config=small.py", "--config.seed=one"])
    assert main.parse_flags(["--config=small.py", "--config.seed=1"])[0].seed == 1


def test_workers_that_die_end_the_command_as_processes_that_die_do(folder, monkeypatch, capsys):
    """And so the same command is tried again, where a mistake (2) is not."""
    from inception_jax import train

    def lose(*args, **options):
        raise LostError("processes that decode pictures died 3 times")

    monkeypatch.setattr(train, "train_and_evaluate", lose)
    assert main.main(["--config=small.py"]) == 5
    assert commands.main(["train", "--config=small.py"]) == 5
    assert capsys.readouterr().err == 2 * "error: processes that decode pictures died 3 times\n"
