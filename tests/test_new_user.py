"""The path of a new user: the commands on a trained network in docs/use.md, in their order, as printed there."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

PAGE = Path(__file__).parent.parent / "docs" / "use.md"
COMMAND = [sys.executable, "-c", "from inception_jax.commands import main; main()"]  # what `inception-jax` runs


def commands():
    section = PAGE.read_text().partition("\n## ")[0]
    lines = re.findall(r"^    inception-jax (.*)$", section, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
@pytest.mark.first
def test_the_pages_commands_in_their_order(tmp_path):
    digits = load_digits()
    (tmp_path / "pictures").mkdir()
    for label in range(10):
        (index, *_) = np.flatnonzero(digits.target == label)
        pixels = (digits.images[index] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{label}.png")

    # One device, as users have; what is trained and its accuracy are of programs that are optimised as theirs.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    users = {
        name: value
        for name, value in environment.items()
        if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    }
    place = {"cwd": tmp_path, "env": environment}

    def run(*arguments, **options):
        result = subprocess.run([*COMMAND, *arguments], **place | options, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    listed = commands()
    assert [name for name, *_ in listed] == ["train", "evaluate", "predict", "report", "export", "predict", "serve"]
    train, evaluate, predict, report, export, predict_file, serve = listed
    run(*train, env=users)
    assert float(re.search(r"(\d+\.\d+)%", run(*evaluate, env=users))[1]) > 98
    table = run(*predict)
    right = sum(bool(re.search(rf"{label}\.png +{label} +[\d.]+% ", table)) for label in range(10))
    assert right >= 9
    page = tmp_path / run(*report).strip()
    assert page.read_text().lower().startswith("<!doctype html>")
    run(*export)
    assert run(*predict_file) == table

    with subprocess.Popen([*COMMAND, *serve, "--port", "0"], **place, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            picture = (tmp_path / "pictures/3.png").read_bytes()
            with urllib.request.urlopen(f"{address}predict?top=1", picture, timeout=60) as answer:
                assert json.load(answer)["classes"][0]["name"] == "3"
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
