"""The shell: what can be typed, and what is answered when it is typed wrong."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax import commands, main
from inception_jax.config_files import shipped_configs
from inception_jax.errors import UserError

CONFIG = """
from inception_jax.config import default_config

def get_config():
    config = default_config()
    config.batch_size = 64
    config.num_epochs = 2
    config.num_devices = 1
    config.model.name = "simple_cnn"
    config.model.norm = "none"
    config.model.stage_features = (4, 8)
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
    from inception_jax.run import build_model

    config, workdir = main.parse_flags([f"--config={name}"])
    validate(config)
    build_model(config, 10)
    assert workdir == Path("runs", name)


def test_any_field_can_be_set(folder):
    config, workdir = main.parse_flags(
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
    config, _ = main.parse_flags(["--config=small.py", "--config.model.name=googlenet", "--config.model.stem=small"])
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
    (["--config=small.py", "--config.model.stem=small"], "unknown option of simple_cnn 'stem'"),
    (["--config=small.py", "--config.model.num_classes=5"], "model.num_classes cannot be set: it follows from"),
    (["--config=small.py", "--config.data.name=minst"], "unknown data set 'minst'. Did you mean 'mnist'?"),
    (["--config=small.py", "--config.data.splits.train=trian"], "trian"),
    (["--config=small.py", "--config.batch_size=0"], "batch_size=0 is not allowed: it must be at least 1"),
    (["--config=small.py", "--config.accumulation_steps=3"], "does not divide into accumulation_steps=3"),
    (["--config=small.py", "--config.num_devices=8", "--config.batch_size=60"], "does not divide over 8 devices"),
    (["--config=small.py", "--config.evaluate.watch=validation_top3"], "unknown metric in evaluate.watch"),
    (["--config=small.py", "--config.evaluate.stop_at=94"], "watch='validation_top1', which is from 0 to 1"),
    (["--config=small.py", "--config.evaluate.splits=dev"], "unknown split in evaluate.splits 'dev'"),
    (["--config=small.py", "--config.evaluate.splits=(1,2)"], "unknown split in evaluate.splits '1'"),
    (["--config=small.py", "--config.schedule.boundaries=(a,b)"], "schedule.boundaries=('a', 'b') is not allowed"),
    (["--config=small.py", "--config.data.std=(0,0,0)"], "it must be a number above 0 for each channel"),
    (["--config=small.py", "--config.data.std=(1,1,1)"], "data.std has 3 numbers, but the images have 1 channel"),
    (["--config=small.py", "--config.data.augment.random_resized_crop=(x,y)"], "two shares of the area"),
    (["--config=small.py", "--workdir=small.py/run"], "cannot write the run's folder"),
    (["--config=small.py", "--config.data.directory=small.py"], "cannot write the data set to small.py"),
    (["--config=small.py", "--config.data.name=mnist", "--config.data.archives=x"], "archives='x' is no folder"),
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
    assert main.main(["--config=small.py", "--config.schedule.learning_rate=1e30"]) == 3
    assert "error: the loss of step" in capsys.readouterr().err


def test_training_leaves_the_whole_run_folder_and_finishes_again_at_once(folder, capsys):
    assert main.main(["--config=small.py", "--config.log.tensorboard=true"]) == 0
    shown = capsys.readouterr().err
    for expected in ("device: 1 x cpu", "data: digits", "parameters: ", "first step: ", "estimate: ", "epoch 2/2 done"):
        assert expected in shown
    names = {path.name.partition(".")[0] for path in (folder / "runs" / "small").iterdir()}
    assert names >= {"config", "metrics", "summary", "report", "events", "checkpoints"}
    assert main.main(["--config=small.py", "--config.log.tensorboard=true"]) == 0
    assert main.main(["--config=small.py", "--config.num_epochs=3"]) == 2
    assert "num_epochs was 2, now 3" in capsys.readouterr().err


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
    (step,) = re.findall(r"stopped after step (\d+) of 200000 and saved: the same command goes on from there", rest)
    assert "Traceback" not in rest
    assert (folder / "runs" / "small" / "checkpoints" / step).is_dir()


def test_help_and_configs_do_not_wait_for_jax():
    code = (
        "import sys; from inception_jax import commands; commands.main([sys.argv[1]]); assert 'jax' not in sys.modules"
    )
    for argument in ("configs",):
        shown = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=True
        ).stdout
        assert "googlenet_cifar10" in shown


@pytest.mark.parametrize("argv", [["train", "--help"], ["--help"], ["data", "--help"], ["evaluate", "--help"]])
def test_help_is_shown(argv, capsys):
    try:
        code = commands.main(argv)
    except SystemExit as done:
        code = done.code
    assert code == 0
    assert "inception-jax" in capsys.readouterr().out


def test_unknown_commands_are_named(capsys):
    assert commands.main(["trian"]) == 2
    assert "unknown command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_parse_flags_can_be_called_again(folder):
    with pytest.raises(UserError):
        main.parse_flags(["--config=small.py", "--config.seed=one"])
    assert main.parse_flags(["--config=small.py", "--config.seed=1"])[0].seed == 1
