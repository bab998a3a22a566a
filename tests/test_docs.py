"""The walk-through's code runs as it stands, and prints what it says."""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import inception_jax
from inception_jax import models
from inception_jax.studies.plan import load_study, make_plan, shipped_studies

PAGE = Path(__file__).parent.parent / "docs" / "inspect.md"
# It stands for the GoogLeNet that the page has trained: the same names, a fraction of the time to compile.
STAND_IN = """
from functools import partial
from flax import linen as nn
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.layers import ConvUnit

class StandIn(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        conv = partial(ConvUnit, norm="none")
        x = conv(4, (3, 3), name="conv1")(images, train)
        x = InceptionModule(Inception(2, 2, 3, 2, 2, 2), conv=conv, name="inception_3a")(x, train)
        x = conv(4, name="inception_3b")(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))
"""


def run_page(page):
    """Runs the page's blocks of code, each of which has to print the block of text behind it; returns them all."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"python", "text"}
    namespace, printed = {}, ""
    for language, text in blocks:
        if language == "text":
            assert printed == text
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(text, str(page), "exec"), namespace)
        printed = output.getvalue()
    return blocks


def test_the_scaling_page_prints_what_it_says():
    run_page(PAGE.with_name("scaling.md"))


def test_the_walk_through_runs_and_prints_what_it_says(tmp_path, monkeypatch, digits):
    stand_in = types.ModuleType("stand_in_of_the_docs")
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    exec(STAND_IN, vars(stand_in))
    # A registered one: the page loads its run without trusting code from outside the package.
    monkeypatch.setattr(models, "MODELS", {**models.MODELS, "stand_in": stand_in.StandIn})
    monkeypatch.chdir(tmp_path)
    config = inception_jax.default_config()
    config.num_epochs = 1
    config.num_devices = 1
    config.data.directory = str(digits)
    config.model.name = "stand_in"
    config.log.tensorboard = False
    inception_jax.train_and_evaluate(config, "runs/googlenet_digits")

    blocks = run_page(PAGE)
    code = "".join(text for language, text in blocks if language == "python")
    for name in re.findall(r"\w+\.png", code):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_study_of_the_page_can_be_run(tmp_path):
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE.with_name("studies.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my_study.py").write_text(text)
    name, study = load_study(str(tmp_path / "my_study.py"))
    assert len(make_plan(name, study, "full", tmp_path).runs) == 6


def test_the_page_names_every_study():
    page = PAGE.with_name("studies.md").read_text()
    assert all(f"`{name}`" in page for name in shipped_studies())
