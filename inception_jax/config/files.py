"""Config files: finding one by path or name, running it, and setting its fields from the command line.

JAX is not imported here, so that mistakes are reported at once.
"""

import ast
import contextlib
import csv
import difflib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from inception_jax import files
from inception_jax.config.fields import (
    BY_NAME,
    OPEN_SECTIONS,
    Config,
    default_config,
    field_names,
    get_field,
    may_be_unset,
)
from inception_jax.config.validate import KINDS, check_fields, may_be_new
from inception_jax.errors import UserError, unknown_name

# Shipped configs are inside the package in a wheel, and beside it in a checkout.
_FOLDERS = tuple(Path(__file__).parents[level] / "configs" for level in (1, 2))


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package: a dict from name to file, sorted by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find_config(name_or_path: str) -> Path:
    """The config file at a path, or the shipped config of that name, which takes precedence over a file.

    Raises:
      UserError: there is neither; the message names the closest shipped config.
    """
    shipped = shipped_configs()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = files.expand(name_or_path, "--config")
    if path.is_file():
        return path
    # "googlenet_digits.py" or "configs/googlenet_digits.py", as in a checkout, although there is no such file here
    if path.parent in (Path(), Path("configs")) and path.stem in shipped:
        return shipped[path.stem]
    nearest = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise UserError(f"there is no config {name_or_path!r}: {hint}Give a file, or one of {', '.join(shipped)}")


def find_config_and_argument(text: str) -> tuple[Path, str | None]:
    """As `find_config`, of NAME_OR_FILE or NAME_OR_FILE:ARGUMENT, and the argument of the file's `get_config`.

    Raises:
      UserError: there is no such config.
    """
    with contextlib.suppress(UserError):
        return find_config(text), None  # the name of a file may contain a colon
    name, colon, argument = text.partition(":")
    return find_config(name), argument if colon else None


def load_config(path: Path, argument: str | None = None) -> Config:
    """Runs the file and returns its `get_config()`, or `get_config(argument)` if an argument is given.

    Raises:
      UserError: the file cannot be read or raises an exception (the message says on which line), or it has no
        `get_config()` that returns a config with all fields.
    """
    config = run_file(path, "get_config", *([] if argument is None else [argument]))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {path} needs a function get_config() that returns a ConfigDict: "
            "start it from inception_jax.config.default_config()"
        )
    try:
        check_fields(config)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from error
    return _thawed(config) if isinstance(config, FrozenConfigDict) else config


def _thawed(frozen: FrozenConfigDict) -> Config:
    """A config that can be changed, with the fields of a frozen one, which has lost the types of unset fields.

    Raises:
      UserError: the frozen config has an unknown field, or a value that is not of the field's type.
    """
    config = default_config()
    for path in field_names(frozen):
        section, name = _section(config, path)
        value = get_field(frozen, path)
        if section is None or (section.is_locked and name not in section):
            raise unknown_name("field", path, field_names(config))
        try:
            section[name] = value
        except TypeError as error:
            raise UserError(f"{path}={value!r} is not allowed: {_one_line(error)}") from error
    return config


def run_file(path: Path, function: str, *arguments: str) -> Any:
    """Runs a Python file and returns what a function in it returns, or None if it has no function of that name.

    While it runs it is a module like any other, as dataclasses require. Its own directory and the current one are
    searched for modules after everything that is installed.

    Raises:
      UserError: the file cannot be read or raises an exception; the message says on which line.
    """
    # Not imported: an import would leave __pycache__ beside the file, and could find a stale one there.
    module = types.ModuleType(f"config_file_{path.stem}")
    module.__file__ = str(path)
    try:
        with _registered(module), _neighbors(path.resolve().parent, Path.cwd()):
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
            if function not in vars(module):
                return None
            called = getattr(module, function)
            _check_takes(called, arguments)
            return called(*arguments)
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"config file {where}: {type(error).__name__}: {_one_line(error)}") from error


def _check_takes(called: Any, arguments: Sequence[str]) -> None:
    """Raises TypeError if a function of a config file does not take the arguments that are given."""
    try:
        inspect.signature(called).bind(*arguments)
    except TypeError as error:
        how = "it takes no argument" if arguments else "it needs an argument: give FILE:ARGUMENT"
        raise TypeError(f"{how} ({error})") from error


@contextlib.contextmanager
def _registered(module: types.ModuleType) -> Iterator[None]:
    """The module is in sys.modules; afterwards another one of that name, if there was one, is back."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__)
        if before is not None:
            sys.modules[module.__name__] = before


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source; neither reads nor writes __pycache__."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Neighbors(importlib.abc.MetaPathFinder):
    """Finds modules in some directories after all other finders have failed, and remembers their names."""

    def __init__(self, directories: Sequence[Path]):
        kinds = (_SourceLoader, importlib.machinery.SOURCE_SUFFIXES)
        self.finders = [importlib.machinery.FileFinder(str(directory), kinds) for directory in directories]
        self.found: set[str] = set()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = (finder.find_spec(fullname) for finder in self.finders if path is None)
        spec = next((spec for spec in found if spec and spec.loader), None)
        if spec:
            self.found.add(fullname)
        return spec


@contextlib.contextmanager
def _neighbors(*directories: Path) -> Iterator[None]:
    """Makes the modules in these directories importable.

    They are forgotten afterwards, since the modules beside another config may have the same names.
    """
    finder = _Neighbors(directories)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.found]:
            del sys.modules[name]


def _one_line(error: Exception) -> str:
    """The message on one line, without the list of all other fields that a ConfigDict adds."""
    content = error.msg if isinstance(error, SyntaxError) else error
    while isinstance(content, Exception) and content.args:  # a ConfigDict wraps a KeyError in an AttributeError
        content = content.args[0]
    text = re.sub(r"Other fields present:.*?(?=Did you mean|\Z)", "", str(content), flags=re.DOTALL)
    return " ".join(text.split())


def override(config: Config, argv: list[str]) -> None:
    """Sets the fields given as --config.FIELD=VALUE. `argv[0]` is the name of the program.

    The value None unsets an optional field. Class names are read as text, even if they look like numbers. Another
    model.name resets all options of the network that are not given as well; another optimizer.name or schedule.name
    removes the arguments of the one before.

    Raises:
      UserError: an unknown field or flag, or a value of the wrong type.
    """
    fields = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg))]
    for field in fields:
        _check_field(config, field)
    before = {section: config[section].name for section in OPEN_SECTIONS}
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    ours, rest = _split_off(config, argv)
    try:
        # New fields are for code outside the package; _check_field has refused all others.
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=rest
        )
        unexpected = values(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        known = ["config", "workdir", "help", *(f"config.{field}" for field in field_names(config))]
        raise UserError(f"unknown flag --{error.flagname}{_nearest(error.flagname, known)}") from error
    except flags.IllegalFlagValueError as error:
        field, value = re.findall(r"flag --config\.([^=]*)=(.*?): ", f"{error}: ", re.DOTALL)[0]
        section, name = _section(config, field)
        expected = KINDS.get(section.get_type(name), "of another type")
        raise UserError(f"--config.{field}={' '.join(value.split())} is not allowed: it must be {expected}") from error
    except (flags.Error, ValueError) as error:
        raise UserError(_one_line(error)) from error
    for section, name in before.items():
        if config[section].name != name:
            _forget_options(config, section, fields)
    _check_new(config, fields)
    if unexpected:
        raise UserError(f"unexpected argument {unexpected[0]!r}: flags have the form --name=value")
    for field in fields:
        section, name = _section(config, field)
        if isinstance(section.get(name), tuple):
            section[name] = _split_names(section[name])
    for field, value in ours.items():
        section, name = _section(config, field)
        section[name] = value


def _split_off(config: Config, argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Reads the fields that absl would misread, and returns them with the arguments that are left for absl.

    Raises:
      UserError: a path is empty, or a quote in a list of names is not closed.
    """
    ours: dict[str, Any] = {}
    rest: list[str] = []
    left = list(reversed(argv))
    while left:
        argument = left.pop()
        match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        name, text = match.groups()
        separate = text is None and bool(left) and _takes_next(config, name, left[-1])
        text = left[-1] if separate else text
        field = BY_NAME.get(name)
        if field and field.source and text is not None and not text.strip():
            raise UserError(f"--config.{name} is empty; is a shell variable unset? None stands for no {name}")
        if field and field.any_name and text is not None:
            ours[name] = (*ours.get(name, ()), *_as_names(name, text))
        elif text == "None" and may_be_unset(name):
            ours[name] = None
        else:
            ours.pop(name, None)  # the last value applies
            rest.append(argument)
            continue
        if separate:
            left.pop()
    return ours, rest


def _takes_next(config: Config, name: str, word: str) -> bool:
    """Whether the word after --config.NAME is its value: always, unless it is a switch; of a switch only None."""
    section, last = _section(config, name)
    switch = last in section and section.get_type(last) is bool
    return word == "None" if switch else True


def _as_names(field: str, text: str) -> tuple[str, ...]:
    """Names separated by commas, in quotes if they contain commas, or a list as in Python or JSON.

    Raises:
      UserError: a quote is not closed.
    """
    value: Any = None
    with warnings.catch_warnings(), contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        warnings.simplefilter("ignore")  # invalid escape sequences
        value = ast.literal_eval(text.strip()) if text.strip()[:1] in ("(", "[", "'", '"') else None
    value = (value,) if isinstance(value, str) else value
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    try:
        (row,) = csv.reader([_without_brackets(text.strip())], skipinitialspace=True, strict=True) or [[]]
    except (csv.Error, ValueError) as error:
        raise UserError(f"--config.{field}={' '.join(text.split())} is not allowed: {error}") from error
    return tuple(name for part in row if (name := part.strip()))


def _without_brackets(text: str) -> str:
    """The text without the brackets that enclose all of it; others stay."""
    if not text or text[0] + text[-1] not in ("()", "[]"):
        return text
    depth = 0
    for place, char in enumerate(text):
        depth += (char == text[0]) - (char == text[-1])
        if not depth:
            return text[1:-1] if place == len(text) - 1 else text
    return text


def _forget_options(config: Config, section: str, given: list[str]) -> None:
    """Unsets the options that were meant for the config's own network, optimizer or schedule, except those in `given`.

    Of an optimizer and a schedule these are the fields that are not in the table.
    """
    for name in list(config[section]):
        path = f"{section}.{name}"
        if section == "model" and name != "name" and path not in given:
            config.model[name] = None
        elif path not in BY_NAME and path not in given:
            del config[section][name]


def _check_new(config: Config, fields: list[str]) -> None:
    """Raises UserError for a field that is new, although the network, optimizer or schedule is one of the package."""
    for field in fields:
        if field not in BY_NAME and not may_be_new(config, field):
            raise UserError(f"unknown field --config.{field}{_nearest(field, list(BY_NAME), '--config.')}")


def _split_names(values: tuple) -> tuple:
    """Splits `validation,test`, which absl leaves as one text; it has split numbers already."""
    parts = []
    for value in values:
        parts += [part.strip() for part in value.strip("()[]").split(",")] if isinstance(value, str) else [value]
    return tuple(part for part in parts if part != "")


def _check_field(config: Config, field: str) -> None:
    """Raises UserError for an unknown field, or for a section."""
    section, name = _section(config, field)
    known = list(field_names(config))
    if section is None or (name not in section and (section.is_locked or not name.isidentifier())):
        raise UserError(f"unknown field --config.{field}{_nearest(field, known, '--config.')}")
    if isinstance(section.get(name), ConfigDict):
        inside = ", ".join(path for path in known if path.startswith(f"{field}."))
        raise UserError(f"--config.{field} is a section; set its fields one by one: {inside}")


def _section(config: Config, field: str) -> tuple[Any, str]:
    """The section that a field is in, or None if there is no such section, and the field's name in it."""
    *sections, name = field.split(".")
    part: Any = config
    for section in sections:
        part = part.get(section) if isinstance(part, ConfigDict) else None
    return (part if isinstance(part, ConfigDict) else None), name


def _nearest(name: str, known: list[str], prefix: str = "--") -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {prefix}{nearest[0]}?" if nearest else " (--help lists all)"
