"""Code in README and docs runs as printed and prints what it says; what the pages link to and name exists."""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import jax
import pytest
import yaml

import inception_jax
from inception_jax import models
from inception_jax.config.files import shipped_configs
from inception_jax.studies.plan import load_study, make_plan, shipped_studies

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = DOCS / "inspect.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
# Stands in for the GoogLeNet that the page trains: the same names, a fraction of the time to compile.
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


def fenced_blocks(page):
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run_page(page):
    """Runs the page's blocks of code, each of which has to print the block of text after it; returns them all."""
    blocks = fenced_blocks(page)
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


def test_the_api_page_prints_what_it_says():
    run_page(DOCS / "api" / "index.md")


def test_the_readmes_code_runs(capsys):
    ((language, text),) = fenced_blocks(ROOT / "README.md")
    assert language == "python"
    exec(compile(text, "README.md", "exec"), {})
    assert "inception_3a" in capsys.readouterr().out


def test_the_network_of_the_page_is_one(tmp_path, monkeypatch):
    _, text = fenced_blocks(DOCS / "your_own.md")[0]
    (tmp_path / "network_of_the_docs.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    network = models.create_model("network_of_the_docs:MyNet", num_classes=10, width=64)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    logits, _ = jax.eval_shape(lambda images: network.init_with_output(jax.random.key(0), images, train=False), images)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_and_names_exists(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"\b(?:benchmarks|launch|tests)/[\w.]+\.(?:py|sh|sbatch|yaml)\b", text):
        assert (ROOT / path).exists(), path
    known = {*shipped_configs(), "NAME", "FILE", "my_pictures", "..."}
    for name in re.findall(r"--config=(?:configs/)?([\w.]+?)(?:\.py)?(?![\w.])", text):
        assert name in known, name


def test_the_sites_navigation_has_every_page():
    def leaves(tree):
        if isinstance(tree, str):
            return [tree]
        return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {page.relative_to(DOCS).with_suffix(".md").as_posix() for page in [*DOCS.rglob("*.md"), *NOTEBOOKS]}
    assert len(listed) == len(set(listed))
    assert pages | {"config.md"} == set(listed)
