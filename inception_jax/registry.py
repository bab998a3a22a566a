"""Looking things up by name: in a registry of ours, or as "module:Name" in anybody's module."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import UserError, unknown_name


def resolve(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    """What `name` stands for: an entry of `registry`, or the attribute `Name` of a module given as "module:Name".

    The current folder is searched for modules, too, as `python -m` does.

    Raises:
      UserError: nothing has that name, or the module does not import.
    """
    if ":" not in name:
        if name not in registry:
            raise unknown_name(kind, name, registry)
        return registry[name]
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two where it is no module's name, as in ".:Name"
        raise UserError(
            f"{kind} {name!r}: cannot import {module_name!r} ({error}); is its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise unknown_name(f"{kind} in {module_name}", attribute, public)
    return getattr(module, attribute)
