"""The folders of a run's checkpoints: one per step, and those that were renamed and no longer count.

Orbax lists the folders whose whole name is a number, so renaming one takes it out of the list. Of several processes,
the first one alone renames and removes.
"""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import jax

DAMAGED = "damaged-"  # set aside for the user to inspect
REPLACED = "replaced-"  # kept until its replacement is complete


def saved_steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint in the folder, intact or damaged, as this process sees it now."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def damaged_steps(directory: Path) -> list[int]:
    """The steps whose damaged checkpoints were set aside."""
    names = (path.name.removeprefix(DAMAGED) for path in directory.glob(f"{DAMAGED}*"))
    return sorted(int(name) for name in names if name.isdecimal())


def set_aside(directory: Path, step: int, prefix: str) -> None:
    """Renames the folder of a step to `prefix` and the step; a folder of that name is removed first."""
    target = directory / f"{prefix}{step}"
    remove([target])
    if jax.process_index() == 0:
        with contextlib.suppress(FileNotFoundError):  # somebody removed it
            (directory / str(step)).rename(target)


def restore_replaced(directory: Path) -> None:
    """Undoes replacements that were interrupted before the new checkpoint was complete."""
    for folder in directory.glob(f"{REPLACED}*") if jax.process_index() == 0 else ():
        final = folder.with_name(folder.name.removeprefix(REPLACED))
        if not final.exists():
            folder.rename(final)


def remove_replaced(directory: Path, step: int) -> None:
    """Removes the checkpoint that the one of this step has replaced."""
    remove([directory / f"{REPLACED}{step}"])


def remove_unfinished(directory: Path) -> None:
    """Removes what a killed process left: incomplete checkpoints, and replaced ones."""
    remove(directory.glob("*.orbax-checkpoint-tmp*"))
    remove(directory.glob(f"{REPLACED}*"))


def remove(folders: Iterable[Path]) -> None:
    """Removes folders that exist."""
    for folder in folders if jax.process_index() == 0 else ():
        shutil.rmtree(folder, ignore_errors=True)
