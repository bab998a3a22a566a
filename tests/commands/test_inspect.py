"""`inception-jax inspect`: what it prints, and what is answered when it is typed wrong."""

import csv
import io
import json
import subprocess
import sys

import pytest
from networks import module_shapes, random_variables

from inception_jax import commands, create_model
from inception_jax.config import default_config
from inception_jax.experiment import Inputs
from inception_jax.runs import run
from inception_jax.runs.run import Run


def inspect(capsys, *argv):
    """Exit code, stdout and stderr of the command."""
    code = commands.main(["inspect", *map(str, argv)])
    return code, *capsys.readouterr()


def test_the_naive_5x5_path_and_the_reduced_one_are_in_the_tables(capsys):
    """Of 480 to 48 channels at 14x14."""
    _, page, _ = inspect(capsys, "googlenet_naive", "--depth", 2)
    (line,) = [line for line in page.splitlines() if line.startswith("inception_4a/conv_5x5 ")]
    assert "112.9M" in line.split()
    code, page, notes = inspect(capsys, "googlenet", "--depth", 2, "--format", "csv")
    assert (code, notes) == (0, "")
    rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(page))}
    cost = sum(int(rows[f"inception_4a/{name}"]["multiply_adds"]) for name in ("conv_5x5_reduce", "conv_5x5"))
    assert cost == 5_268_480


def test_options_size_and_classes_are_the_networks(capsys):
    code, page, _ = inspect(
        capsys, "simple_cnn", "--image-size", 16, "--num-classes", 7, "--option", "stage_features=(4, 8)",
        "--option", "norm=batch", "--format", "markdown",
    )  # fmt: skip
    assert code == 0
    assert page.startswith("simple_cnn, images of 16x16x3: 1,227 parameters, 119,864 multiply-adds")
    assert "| conv1_2 | convolution | 3x3/1 | 16x16x4 | 1 |" in page


def test_against_the_paper_and_xla(capsys):
    code, page, _ = inspect(capsys, "googlenet", "--against", "paper", "--xla")
    assert code == 0
    marked = [line.split("  ")[0] for line in page.splitlines() if line.endswith("  *")]
    assert marked == ["convolution", "inception (4c)", "inception (5a)", "total"]
    assert "1072K and 54M are exactly those of an input 928 deep" in page
    assert "XLA's own count: 1,5" in page.splitlines()[-1]


def test_every_parameter_is_listed(capsys):
    code, page, _ = inspect(capsys, "googlenet", "--parameters", "--num-classes", 10)
    lines = [line.strip("| ").split() for line in page.splitlines()]
    assert code == 0
    assert lines[1] == ["Name", "|", "Shape", "|", "Dtype", "|", "Size"]
    kernel = ["conv1/conv/kernel", "|", "(7,", "7,", "3,", "64)", "|", "float32", "|", "9,408"]
    assert [line for line in lines if line[0] == "conv1/conv/kernel"] == [kernel]
    sizes = [int(line[-1].replace(",", "")) for line in lines[3:-2]]
    assert page.splitlines()[-1] == f"Total: {sum(sizes):,} -- {4 * sum(sizes):,} bytes"


def test_networks_are_compared_and_drawn(capsys, tmp_path):
    chart = tmp_path / "chart.png"
    code, page, _ = inspect(capsys, "resnet1[8]*", "googlenet", "simple_cnn", "--no-latency", "--chart", chart)
    assert code == 0
    lines = page.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["resnet18", "googlenet", "simple_cnn"]
    assert lines[2].split()[1:] == ["224x224x3", "11.69M", "1.814G", "46.80MB", "69.8%"]
    assert "top-1 on ImageNet of resnet18: torchvision, IMAGENET1K_V1" in lines
    assert chart.stat().st_size > 10_000


def test_published_accuracies_are_of_unchanged_networks_alone(capsys):
    for change in (["--image_size", 64], ["--option", "norm=none"]):  # "none", no None
        _, page, notes = inspect(capsys, "resnet18", "simple_cnn", "--no-latency", "--format", "csv", *change)
        assert notes == ""
        assert {row["top1"] for row in csv.DictReader(io.StringIO(page))} == {""}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run's folder, and what is loaded from it, without training it."""
    config = default_config()
    config.model.name = "simple_cnn"
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"test": {"top1": 0.9123}}}))
    model = create_model("simple_cnn", num_classes=2, stage_features=(4,))
    inputs = Inputs(("dark", "light"), (6, 9, 1), (0.5,), (0.2,))
    variables = random_variables(module_shapes(model, (1, 6, 9, 1))[1])
    monkeypatch.setattr(run, "load_run", lambda folder, **_: Run(tmp_path, config, model, variables, inputs, 1))
    return tmp_path


def test_a_run_has_its_own_images_and_accuracy(capsys, finished):
    code, page, _ = inspect(capsys, finished)
    assert (code, page.split(": ")[0]) == (0, f"{finished}, images of 6x9x1")
    code, page, _ = inspect(capsys, finished, "--diagram", finished / "network.svg", "--depth", "2")
    assert code == 0
    drawn = (finished / "network.svg").read_text()
    assert "images 6x9x1" in drawn
    assert f"{finished}: 198 parameters, " in drawn
    code, page, _ = inspect(capsys, finished, "--parameters")
    assert page.splitlines()[1].split()[1::2] == ["Name", "Shape", "Dtype", "Size", "Mean", "Std"]
    assert page.splitlines()[-1] == "Total: 198 -- 792 bytes"
    code, page, _ = inspect(capsys, finished, "googlenet", "--no-latency", "--image-size", 12)
    lines = page.splitlines()
    assert lines[2].split() == [str(finished), "12x12x1", "198", "25.93K", "792B", "91.2%"]


WRONG = [
    ([], "the following arguments are required: NAME"),
    (["googlnet"], "unknown model 'googlnet'. Did you mean 'googlenet'?"),
    (["gogle*"], "no network matches 'gogle*'. Known: "),
    (["runs/missing"], "runs/missing is not a run's folder: it has no config.json"),
    (["googlenet", "--image-size", "0"], "--image-size=0 is not allowed: it must be at least 1"),
    (["googlenet", "--image-size", "big"], "argument --image-size: invalid int value: 'big'"),
    (["vgg11", "--image-size", "16"], "images of 16x16 pixels are too small for"),
    (["googlenet", "--format", "html"], "unknown --format 'html'"),
    (["googlenet", "--option", "norm"], "--option norm is not allowed: it must be KEY=VALUE, such as norm=lrn"),
    (["googlenet", "--option", "nrom=lrn"], "unknown option of googlenet 'nrom'. Did you mean 'norm'?"),
    (["googlenet", "--option", "dtype=float16"], "dtype is not an option of the network"),
    (["googlenet", "--chart", "x.png"], "--chart needs several networks, got googlenet"),
    (["googlenet", "resnet18", "--diagram", "x.png"], "--diagram needs one network, got googlenet, resnet18"),
    (["simple_cnn", "--diagram", "x.gif"], "x.gif is not allowed for a diagram: it must end in .png, .pdf, .svg"),
    (["googlenet", "resnet18", "--xla"], "--xla needs one network, got googlenet, resnet18"),
    (["resnet18", "vgg11", "--parameters"], "--parameters needs one network, got resnet18, vgg11"),
    (["resnet18", "--parameters", "--xla"], "--xla cannot be used with --parameters"),
    (["resnet18", "--parameters", "--format", "csv"], "--format cannot be used with --parameters"),
    (["resnet18", "--against", "paper"], "the paper's table is of googlenet"),
    (["simple_cnn", "googlenet_naive", "--no-latency", "--chart", "x.png"], "none has a known accuracy"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_mistakes_are_answered_in_one_line(capsys, argv, message):
    code, shown, error = inspect(capsys, *argv)
    assert (code, shown) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_run_is_what_it_is(capsys, finished):
    code, _, error = inspect(capsys, finished, "--num-classes", 3)
    assert (code, "--option and --num-classes cannot be used with a run" in error) == (2, True)


def test_help_has_examples_and_does_not_wait_for_jax():
    code = "from inception_jax import commands; commands.main(['inspect', '--help'])"
    check = f"import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); {code}"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert "inception-jax inspect googlenet --against paper" in shown
    assert shown.endswith("False\n")


def test_a_reader_that_has_had_enough_ends_it_quietly():
    command = f"{sys.executable} -c 'from inception_jax import commands; import sys; sys.exit(commands.main())'"
    shown = subprocess.run(
        f"{command} inspect googlenet --depth 3 | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert (shown.stdout[:10], shown.stderr) == ("googlenet,", "")
