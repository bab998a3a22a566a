"""Reading one checkpoint, and finding out whether it is damaged."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from inception_jax.errors import UserError
from inception_jax.files import parse_json
from inception_jax.runs.orbax_quirks import brief
from inception_jax.runs.verification import FORMAT, LISTED, Manifest, describe
from inception_jax.text import listed


class DamagedError(Exception):
    """The content of a checkpoint is not what was saved."""


def read_items(folder: Path) -> list[Any] | str:
    """The JSON items `digest` and `progress` of a checkpoint, or what is wrong with them."""
    try:
        return [parse_json((folder / item / "metadata").read_bytes()) for item in ("digest", "progress")]
    except Exception as error:  # a changed byte can cause any error
        return brief(error)


def verify_items(folder: Path, items: list[Any] | str) -> Manifest:
    """The manifest in the items that `read_items` has read.

    Raises:
      DamagedError: they could not be read, or do not belong together.
      UserError: a later version of the package has written them.
    """
    if isinstance(items, str):
        raise DamagedError(items)
    try:
        digest, progress = items
        written_format, manifest = Manifest.verified(digest, progress)
    except Exception as error:
        raise DamagedError("progress and digest do not match") from error
    if written_format > FORMAT:
        raise UserError(
            f"the checkpoint of step {folder.name} in {folder.parent} was written by a later version of inception_jax "
            f"(format {written_format}; this one reads up to {FORMAT}): install that version, or use another folder"
        )
    return manifest


def read_state(folder: Any, shapes: PyTree, leaves: dict[str, dict[str, Any]], *, whole: bool) -> tuple[PyTree, str]:
    """The state of a checkpoint, and what is wrong with it, "" if nothing.

    Not read by Orbax's manager, whose processes would wait forever for one that could not read.

    Args:
      folder: the checkpoint's, a path of the type that Orbax's manager has.
      shapes: the wanted leaves, as `verification.abstract` describes them.
      leaves: the same leaves in the manifest, by path.
      whole: whether these are all leaves of the state.
    """
    try:
        if whole:
            state = ocp.StandardCheckpointHandler().restore(folder / "state", args=ocp.args.StandardRestore(shapes))
        else:
            targets = ocp.checkpoint_utils.construct_restore_args(shapes)
            args = ocp.args.PyTreeRestore(shapes, restore_args=targets, partial_restore=True)
            state = ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)
        found = describe(state, with_bytes=True)
    except jax.errors.JaxRuntimeError:
        raise  # from the device, for example if its memory is full
    except Exception as error:
        return None, brief(error)
    changed = [path for path, leaf in leaves.items() if found.get(path) != leaf]
    return state, f"{listed(changed, LISTED, '; ')} not as saved" if changed else ""
