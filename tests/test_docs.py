"""The walk-through's code runs as it stands, and prints what it says."""

import contextlib
import io
import re
import sys
from pathlib import Path

import inception_jax

PAGE = Path(__file__).parent.parent / "docs" / "inspect.md"
# It stands for the GoogLeNet that the page has trained: the same names, a fraction of the time to compile.
STAND_IN = """
from flax import linen as nn
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.layers import ConvUnit

class StandIn(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x = ConvUnit(4, (3, 3), norm="none", name="conv1")(images, train)
        x = InceptionModule(Inception(2, 2, 3, 2, 2, 2), norm="none", name="inception_3a")(x, train)
        x = ConvUnit(4, norm="none", name="inception_3b")(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))
"""


def test_the_walk_through_runs_and_prints_what_it_says(tmp_path, monkeypatch, digits):
    (tmp_path / "stand_in_of_the_docs.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    config = inception_jax.default_config()
    config.num_epochs = 1
    config.num_devices = 1
    config.data.directory = str(digits)
    config.model.name = "stand_in_of_the_docs:StandIn"
    config.log.tensorboard = False
    inception_jax.train_and_evaluate(config, "runs/googlenet_digits")

    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"python", "text"}
    namespace, printed = {}, ""
    for language, text in blocks:
        if language == "text":
            assert printed == text
            continue
        page = io.StringIO()
        with contextlib.redirect_stdout(page):
            exec(compile(text, str(PAGE), "exec"), namespace)
        printed = page.getvalue()
    code = "".join(text for language, text in blocks if language == "python")
    for name in re.findall(r"\w+\.png", code):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
