"""A run's weights, taken out by the command and put into the other library."""

import json

import numpy as np
import pytest
from peers import import_torchvision
from runs import untrained_resnet

from inception_jax import commands
from inception_jax.runs import run
from inception_jax.runs.run import Run
from inception_jax.weights import from_state_dict, read_state_dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    return run.load_run(untrained_resnet(tmp_path_factory.mktemp("runs") / "resnet"))


def test_the_file_is_the_peers_and_gives_its_logits(trained, capsys):
    torchvision = import_torchvision()
    import torch

    assert commands.main(["export", str(trained.folder), "--format", "torchvision"]) == 0
    path = trained.folder / "resnet18-torchvision.safetensors"
    peer = torchvision.models.resnet18(num_classes=3)
    peer.load_state_dict({name: torch.tensor(value) for name, value in read_state_dict(path).items()}, strict=True)
    images = np.random.default_rng(1).integers(0, 256, (2, 48, 40, 3), np.uint8)
    inputs = (images / 255 - trained.inputs.mean) / trained.inputs.std  # as the command says
    with torch.no_grad():
        logits = peer.eval()(torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32))
    np.testing.assert_allclose(trained.predict(images), logits.softmax(-1), atol=1e-4)
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: resnet18 with torchvision's names, 122 tensors, ")
    assert "  of step 7; 3 classes: cat, dog, owl\n" in said
    assert said.endswith(
        "  inputs: 32x32, red, green, blue, channels first, pixels from 0 to 1, minus mean (0.5, 0.4, 0.3), "
        "divided by std (0.25, 0.2, 0.3)\n  read back: all values equal the run's\n"
    )


def test_another_file_and_checkpoint_can_be_named(trained, tmp_path, capsys):
    output = tmp_path / "weights.safetensors"
    assert (
        commands.main(["export", str(trained.folder), "--format=timm", "--checkpoint=latest", "--output", str(output)])
        == 0
    )
    variables = from_state_dict(trained.model, read_state_dict(output))
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], trained.variables["params"]["fc"]["kernel"])


def test_a_file_that_reads_back_otherwise_is_removed(trained, tmp_path, capsys, monkeypatch):
    def damaged(path):
        tensors = read_state_dict(path)
        tensors["fc.bias"] = np.nextafter(tensors["fc.bias"], np.float32(9))
        return tensors

    monkeypatch.setattr("inception_jax.trained.export.write.read_state_dict", damaged)
    output = tmp_path / "weights.safetensors"
    assert commands.main(["export", str(trained.folder), "--format=timm", "--output", str(output)]) == 2
    assert (
        "weights.safetensors was removed: 1 of its arrays differ from the run's, such as params/fc/bias"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "torchvison"], "unknown format 'torchvison'. Did you mean 'torchvision'?"),
        (["--format", "cadene"], "cadene has no ResNet: choose torchvision or timm"),
        (["--format", "timm", "--output", "weights.npz"], "must end in .safetensors, .pth or .pt"),
        (["--format", "timm", "--checkpoint", "last"], "checkpoint='last' is not allowed"),
        ([], "the following arguments are required: --format"),
    ],
)
def test_mistakes_are_answered_in_one_line(trained, capsys, arguments, message):
    assert commands.main(["export", str(trained.folder), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_network_that_computes_something_else_is_refused(trained, capsys, tmp_path):
    config = json.loads((trained.folder / "config.json").read_text())
    config["model"]["norm_epsilon"] = 1e-3
    for path in trained.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert commands.main(["export", str(tmp_path), "--format", "torchvision"]) == 2
    assert "differs from torchvision's: it has norm_epsilon=0.001, not 1e-05" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert commands.main(["export", str(tmp_path), "--format", "timm"]) == 2
    assert "config.json is not a run's config" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["export", "--help"])
    assert end.value.code == 0
    assert "inception-jax export runs/googlenet_224 --format torchvision" in capsys.readouterr().out
