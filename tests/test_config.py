"""The table of fields, and what is made from it: defaults, checks, help and docs/config.md."""

from pathlib import Path
from typing import get_args

import ml_collections
import pytest

from inception_jax import commands, main
from inception_jax.config import FIELDS, default_config, field_names, get_field, may_differ, per_process, validate
from inception_jax.config.fields import SECTIONS
from inception_jax.config.reference import help_text, markdown, section_names
from inception_jax.config.validate import has_type
from inception_jax.errors import UserError
from inception_jax.runs import folder

PAGE = Path(__file__).parent.parent / "docs" / "config.md"
OPTIONAL = [field.name for field in FIELDS if field.optional]
VALUES = {int: 1, float: 0.5, bool: True, str: "x"}


def section_of(config, name):
    section, _, last = name.rpartition(".")
    return (get_field(config, section) if section else config), last


def test_every_field_has_a_row_and_a_meaning():
    assert sorted(field.name for field in FIELDS) == sorted(field_names(default_config()))
    for field in FIELDS:
        assert field.section in SECTIONS
        assert field.meaning.endswith(".")
        assert field.meaning.isascii()
        assert field.optional == (field.default is None)
        assert field.optional or has_type(field.default, field.kind)
        section, name = section_of(default_config(), field.name)
        assert section.get_type(name) is field.kind
        if field.kind is tuple:
            assert all(isinstance(item, get_args(field.annotation)[0]) for item in field.default)
        assert not field.choices or field.default in field.choices
    validate(default_config())


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text() == markdown(), "renew it: python -m inception_jax.config.reference > docs/config.md"


def test_help_describes_every_field(capsys):
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert help_text() in shown
    for field in FIELDS:
        assert f"\n  {field.name}  {field.kind.__name__}" in shown
        assert " ".join(field.meaning.split()) in " ".join(shown.split())
        assert all(choice in shown for choice in field.choices)
    assert max(map(len, help_text().splitlines())) <= 110


@pytest.mark.parametrize("argv", [["--help", "optimizer"], ["--help=optimizer"], ["-h", "optimizer", "--wait"]])
def test_help_of_a_section_is_that_section(argv, capsys):
    for called in (main.main, lambda argv: commands.main(["train", *argv])):
        assert called(argv) == 0
        shown = capsys.readouterr().out
        assert "  optimizer.momentum  float, default 0.9; from 0 to 0.9999999\n" in shown
        assert "one of sgd, adam, adamw, rmsprop, rmsprop_tensorflow" in shown
        assert "schedule." not in shown


def test_help_of_a_section_includes_the_sections_within_it():
    assert "\n  data.augment.hue  float" in help_text("data")
    assert "\n  data.name  str" not in help_text("data.augment")
    assert "\n  seed  int, default 0; from 0 to 4294967295\n" in help_text("general")
    assert "\n  model.norm  str or None, default None\n" in help_text("model")
    assert "\n\n".join(help_text(name) for name in section_names() if "." not in name) == help_text()


def test_help_of_an_unknown_section_lists_the_known_ones(capsys):
    assert main.main(["--help", "optimiser"]) == 2
    answer = capsys.readouterr()
    (line,) = answer.err.splitlines()
    assert line.startswith("error: unknown section 'optimiser'. Did you mean 'optimizer'? Known: ")
    assert all(name in line for name in section_names())
    assert answer.out == ""


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_field_can_be_unset(name, tmp_path):
    path = tmp_path / "set.py"
    lines = ["from inception_jax.config import default_config", "def get_config(unset=''):", "    c = default_config()"]
    section, last = section_of(default_config(), name)
    lines += [f"    c.{name} = {VALUES[section.get_type(last)]!r}", f"    if unset: c.{name} = None", "    return c"]
    path.write_text("\n".join(lines))
    assert get_field(main.parse_flags([f"--config={path}"]).config, name) is not None
    for argv in ([f"--config={path}:unset"], [f"--config={path}", f"--config.{name}=None"],
                 [f"--config={path}", f"--config.{name}", "None"]):  # fmt: skip
        config = main.parse_flags(argv).config
        assert get_field(config, name) is None
        validate(config)


@pytest.mark.parametrize("name", [field.name for field in FIELDS if not field.optional])
def test_no_other_field_can_be_unset(name):
    config = default_config()
    section, last = section_of(config, name)
    with config.ignore_type():
        section[last] = None
    with pytest.raises(UserError, match=f"{name}=None is not allowed: it must be "):
        validate(config)


RESUME = {
    "data.directory", "data.archives", "data.folder", "data.pipeline", "data.memory_gib", "data.num_workers",
    "callbacks", "num_devices", "profile",
}  # fmt: skip


def test_what_may_differ_when_a_run_is_resumed():
    """Where files are, what is shown and what happens after a failure, but not what is computed."""
    for name in field_names(default_config()):
        own = name in RESUME - {"callbacks", "num_devices", "profile"} or name.startswith("log.")
        assert may_differ(name) == (own or name in RESUME or name.startswith(("checkpoint.", "nonfinite."))), name
        assert per_process(name) == own, name
    # Fields that another version knows.
    assert may_differ("log.color")
    assert per_process("log.color")
    assert may_differ("checkpoint.own")
    assert not per_process("checkpoint.own")
    for name in ("model.width", "data.color", "color", "finetune.color"):
        assert not may_differ(name)
        assert not per_process(name)


def test_differences_of_configs_are_named_by_the_rows():
    kept, given = default_config(), ml_collections.ConfigDict(default_config())
    given.num_devices, given.log.progress, given.checkpoint.keep_best = 2, "lines", 3
    assert folder.config_differences(kept, given) == []
    given.seed, given.data.image_size = 3, 32
    assert folder.config_differences(kept, given) == ["data.image_size was None, now 32", "seed was 0, now 3"]
    assert folder.common_fields(given).keys() == {field.name for field in FIELDS if not field.per_process}
