"""Weights & Biases (the extra `wandb`): one W&B run for each folder, online or offline (WANDB_MODE=offline)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files
from inception_jax.errors import UserError
from inception_jax.writers import kept
from inception_jax.writers.protocol import RunWriter

KEPT = "wandb.json"  # in the run's folder
PROJECT = "inception_jax"  # unless WANDB_PROJECT is set


def require_login() -> None:
    """Raises UserError if W&B would ask for an API key at the terminal."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError("log.to=wandb needs a login: run `wandb login`, or set WANDB_MODE=offline")


class WandbWriter(RunWriter):
    """Writes to the project WANDB_PROJECT; the files of W&B are in the run's folder, unless WANDB_DIR is set.

    The steps of a W&B run can only increase. So what is repeated after a kill is left out, and also what is repeated
    with other values after a loss that was not finite.
    """

    def __init__(self, folder: Path):
        import wandb

        self._wandb = wandb
        self._folder = folder
        self._kept: dict[str, Any] = kept.read(folder / KEPT, "id")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=self._kept.get("id"),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(folder)),
            reinit="create_new",  # leaves a run that the user has started open
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Online, the server knows what it has; offline, only this file does.
        step = self._run.starting_step - 1 if self._run.resumed else self._kept.get("step", -1)
        self._kept = {"id": self._run.id, "step": step, "images": self._kept.get("images", [])}
        files.write_json(folder / KEPT, self._kept)
        self._step, self._pending = -1, {}  # of the row that is not yet complete

    def resume(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Adds the rows that W&B lacks."""
        self.flush()
        for row in rows:
            self.write_scalars(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
        self.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        if step == self._kept["step"]:  # it cannot be added to any more
            self._run.summary.update(dict(scalars))
        elif step > self._kept["step"]:
            if step != self._step:
                self.flush()
            self._step = step
            self._pending |= scalars

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._run.summary.update(dict(texts))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.flush()
        new = {name: batch for name, batch in images.items() if f"{name}-{step}" not in self._kept["images"]}
        if new:
            pictures = {name: [self._wandb.Image(image) for image in batch] for name, batch in new.items()}
            self._run.log(pictures, step=max(step, self._run.step), commit=True)
            self._kept["images"] += [f"{name}-{step}" for name in new]
            files.write_json(self._folder / KEPT, self._kept)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def write_file(self, path: Path) -> None:
        artifact = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def flush(self) -> None:
        """Ends the row, since W&B keeps the last one to itself until the next begins."""
        if self._pending:
            self._run.log(self._pending, step=self._step, commit=True)
            self._kept["step"], self._pending = self._step, {}
            files.write_json(self._folder / KEPT, self._kept)

    def close(self) -> None:
        self.flush()
        self._run.finish(exit_code=0 if (self._folder / "summary.json").exists() else 1)
