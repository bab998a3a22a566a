"""Config files: finding one by path or by name, and running it. Free of JAX, so that listing them is quick."""

import difflib
import re
import traceback
from pathlib import Path
from typing import Any

import ml_collections

from inception_jax.config import Config
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
    # Not imported: an import leaves __pycache__ beside people's files and can find a stale one there.
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        config = namespace["get_config"]() if "get_config" in namespace else None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"config file {where}: {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config file {path} needs a function get_config() that returns a ConfigDict: "
            "start it from inception_jax.config.default_config()"
        )
    return config


def _one_line(error: Exception) -> str:
    """The message without the dump of all other fields that a ConfigDict adds to it."""
    content = error.msg if isinstance(error, SyntaxError) else error
    while isinstance(content, Exception) and content.args:  # a ConfigDict wraps a KeyError in an AttributeError
        content = content.args[0]
    text = re.sub(r"Other fields present:.*?(?=Did you mean|\Z)", "", str(content), flags=re.DOTALL)
    return " ".join(text.split())
