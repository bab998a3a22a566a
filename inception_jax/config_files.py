"""Config files: finding one by path or by name, running it, setting its fields from the shell.

Free of JAX, so that mistakes are answered at once.
"""

import difflib
import re
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from inception_jax.config import KINDS, Config, field_names
from inception_jax.errors import UserError

# Shipped configs stand inside the package in a wheel, and beside it in a checkout.
_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package: name to file, sorted by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find_config(name_or_path: str) -> Path:
    """The config file at a path, else the shipped one of that name.

    Raises:
      UserError: there is neither; the message names the nearest shipped config.
    """
    path, shipped = Path(name_or_path), shipped_configs()
    if path.is_file():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    if path.parent == Path() and path.stem in shipped:  # "googlenet_digits.py" where no such file is
        return shipped[path.stem]
    nearest = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise UserError(f"there is no config {name_or_path!r}: {hint}Give a file, or one of {', '.join(shipped)}")


def load_config(path: Path) -> Config:
    """Runs the file and returns what its `get_config()` returns.

    Raises:
      UserError: the file cannot be read or raises an exception (the message has its name and line), or has no
        `get_config()` that returns a ConfigDict.
    """
    config = run_file(path, "get_config")
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {path} needs a function get_config() that returns a ConfigDict: "
            "start it from inception_jax.config.default_config()"
        )
    return config


def run_file(path: Path, function: str) -> Any:
    """Runs a Python file and returns what a function in it returns; None where it has none of that name.

    Raises:
      UserError: the file cannot be read or raises an exception; the message has its name and line.
    """
    # Not imported: an import leaves __pycache__ beside people's files and can find a stale one there.
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        return namespace[function]() if function in namespace else None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"config file {where}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The message without the dump of all other fields that a ConfigDict adds to it."""
    content = error.msg if isinstance(error, SyntaxError) else error
    while isinstance(content, Exception) and content.args:  # a ConfigDict wraps a KeyError in an AttributeError
        content = content.args[0]
    text = re.sub(r"Other fields present:.*?(?=Did you mean|\Z)", "", str(content), flags=re.DOTALL)
    return " ".join(text.split())


def override(config: Config, argv: list[str]) -> None:
    """Sets the fields given as --config.FIELD=VALUE; argv[0] is the program's name.

    Raises:
      UserError: an unknown field or flag, or a value of the wrong type.
    """
    fields = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg))]
    for field in fields:
        _check_field(config, field)
    network = config.model.name
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    try:
        # New fields are for networks from outside the package: _check_field lets them pass in unlocked sections only.
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=argv
        )
        unexpected = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = ["config", "workdir", "help", *(f"config.{field}" for field in field_names(config))]
        raise UserError(f"unknown flag --{error.flagname}{_nearest(error.flagname, known)}") from error
    except flags.IllegalFlagValueError as error:
        field, value = re.findall(r"flag --config\.([^=]*)=(.*?): ", f"{error}: ", re.DOTALL)[0]
        section, name = _section(config, field)
        expected = KINDS.get(section.get_type(name), "another type")
        raise UserError(f"--config.{field}={' '.join(value.split())} is not allowed: it must be {expected}") from error
    except (flags.Error, ValueError) as error:
        raise UserError(_one_line(error)) from error
    if config.model.name != network:
        _forget_options(config, fields)
    if unexpected:
        raise UserError(f"unexpected argument {unexpected[0]!r}: flags have the form --name=value")
    for field in fields:
        section, name = _section(config, field)
        if isinstance(section[name], tuple):
            section[name] = _split_names(section[name])


def _forget_options(config: Config, given: list[str]) -> None:
    """Another network starts from its own defaults: the config's options were meant for the one that it names."""
    for name in config.model:
        if name != "name" and f"model.{name}" not in given:
            config.model[name] = None


def _split_names(values: tuple) -> tuple:
    """`--config.evaluate.splits=validation,test` comes as one text; numbers come one by one already."""
    parts = []
    for value in values:
        parts += [part.strip() for part in value.strip("()[]").split(",")] if isinstance(value, str) else [value]
    return tuple(part for part in parts if part != "")


def _check_field(config: Config, field: str) -> None:
    section, name = _section(config, field)
    known = list(field_names(config))
    if section is None or (name not in section and (section.is_locked or not name.isidentifier())):
        raise UserError(f"unknown field --config.{field}{_nearest(field, known, '--config.')}")
    if isinstance(section.get(name), ConfigDict):
        inside = ", ".join(path for path in known if path.startswith(f"{field}."))
        raise UserError(f"--config.{field} is a section; set its fields one by one: {inside}")


def _section(config: Config, field: str) -> tuple[Any, str]:
    """The part of the config that a field is in, None if there is no such part, and the field's name there."""
    *sections, name = field.split(".")
    part: Any = config
    for section in sections:
        part = part.get(section) if isinstance(part, ConfigDict) else None
    return (part if isinstance(part, ConfigDict) else None), name


def _nearest(name: str, known: list[str], prefix: str = "--") -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {prefix}{nearest[0]}?" if nearest else " (--help lists all)"
