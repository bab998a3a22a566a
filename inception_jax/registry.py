"""Looking up objects by name: in a registry of the package, or as "module:Name" in any module."""

import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UntrustedError, UserError, check_choice, unknown_name

GIVEN = "given to fit"  # how the description of an object ends that cannot be imported, see `name_of`


def resolve(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    """The object that `name` refers to: an entry of `registry`, or the attribute `Name` of a module, as "module:Name".

    This imports the module, so names read from a folder or a file must pass `check_trusted` first. Modules are also
    searched in the current folder, after all other locations. The attribute may be nested: "module:Name.method".

    Raises:
      UserError: no object has that name, or the module cannot be imported.
    """
    if ":" not in name:
        check_choice(kind, name, registry)
        return registry[name]
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a TypeError if it is not a module name, as in ".:Name"; else anything its code raises
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{kind} {name!r}: cannot import {module_name!r} ({' '.join(what.split())}); is its folder on PYTHONPATH?"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise unknown_name(f"{kind} in {module_name}", attribute, public)
        found = getattr(found, part)
    return found


def is_outside(name: str) -> bool:
    """Whether a name refers to code outside the package: "module:Name", "optax.NAME", or an object given to `fit`."""
    return ":" in name or name.startswith("optax.") or name.endswith(GIVEN)


def name_of(value: Any) -> str:
    """The name "module:Name" by which an object can be imported, of its outermost package that has it.

    An object without such a name, such as a lambda, is described: "a function given to fit".
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    packages = module.split(".") if isinstance(module, str) and isinstance(name, str) else []
    for depth in range(1, len(packages) + 1):
        place = ".".join(packages[:depth])
        found: Any = sys.modules.get(place)
        for part in str(name).split("."):
            found = getattr(found, part, None)
        if found is value:
            return f"{place}:{name}"
    return f"a {'class' if isinstance(value, type) else 'function'} {GIVEN}"


def check_trusted(kind: str, name: str, folder: Path, trusted: bool) -> None:
    """Raises UntrustedError if a run's folder names code outside the package, which would be imported and called.

    Args:
      trusted: whether the user has allowed it.
    """
    if is_outside(name) and not trusted:
        module = name.partition(":")[0]
        raise UntrustedError(
            f"{folder} names the {kind} {name!r}, which is code from outside the package. If you trust its module "
            f"{module!r} and whoever made the folder, add --trust-code, in Python trust_code=True"
        )


def is_function(value: Any) -> bool:
    """Whether it is a function written in Python, possibly bound or partial, and not from the standard library.

    Checked before calling it, since a name may refer to anything.
    """
    while isinstance(value, functools.partial):
        value = value.func
    value = inspect.unwrap(getattr(value, "__func__", value))
    return (
        isinstance(value, types.FunctionType)
        and (value.__module__ or "").partition(".")[0] not in sys.stdlib_module_names
    )
