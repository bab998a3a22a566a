"""A run's metadata besides its TrainState, and the check that its data has not changed."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from inception_jax import data
from inception_jax.data.dataset import Dataset
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs
from inception_jax.runs.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainingRecord:
    """A run's metadata besides its TrainState, stored as JSON in every checkpoint."""

    inputs: dict[str, Any]
    steps_per_epoch: int
    elapsed_seconds: float = 0.0  # over all sessions, including evaluation
    training_seconds: float = 0.0  # training steps only, without each session's first one, which compiles
    training_images: int = 0  # processed in training_seconds
    evaluation_seconds: float = 0.0  # evaluations during training, without each session's first batch
    evaluated_step: int = 0
    best_value: float | None = None  # of the watched metric, whether or not its checkpoint still exists
    evaluations_since_best: int = 0
    fingerprint: str | None = None  # of image folders, arrays and builders from outside the package
    data_version: str | None = None  # of a published data set; also None if an early version did not store it
    retries: int = 0  # number of times the run went back to a checkpoint because the loss was not finite
    named_streams: bool = False  # derivation of its random numbers, see `experiment.initial_key`
    best_step: int | None = None  # step of best_value; also None if an early version did not store it
    end_step: int | None = None  # after which the run ends because a callback has asked for it
    ended_by: str | None = None  # that callback's name

    @classmethod
    def of(cls, experiment: Experiment, dataset: Dataset) -> "TrainingRecord":
        """The record of a new run."""
        return cls(
            dataclasses.asdict(experiment.inputs),
            experiment.steps_per_epoch,
            fingerprint=dataset.fingerprint,
            data_version=dataset.version,
            named_streams=True,
        )

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "TrainingRecord":
        """The record in a checkpoint. Raises UserError if another version of the package wrote it, with more fields."""
        unknown = sorted(kept.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"the run's checkpoint was written by another version of inception_jax: it has {', '.join(unknown)}. "
                "Install that version, or use another folder"
            )
        return cls(**kept)

    @classmethod
    def from_checkpoint(cls, kept: dict[str, Any], checkpoints: Checkpoints) -> "TrainingRecord":
        """Like `from_json`. For runs of early versions, best_step is taken from the remaining checkpoints."""
        record = cls.from_json(kept)
        if record.best_step is None and record.best_value is not None:
            equal = (step for step in checkpoints.best_steps() if checkpoints.watched(step) == record.best_value)
            record.best_step = next(equal, None)
        return record

    def require_same_data(self, folder: Path, experiment: Experiment, dataset: Dataset) -> None:
        """Raises UserError if the run in `folder` began with different data."""
        self._require_same_pictures(folder, dataset)
        if self.data_version and self.data_version != dataset.version:
            raise UserError(
                f"{folder} has a run on version {self.data_version} of {dataset.name}, but the version is now "
                f"{dataset.version}. Choose another --workdir"
            )
        if Inputs.from_json(self.inputs) != experiment.inputs or self.steps_per_epoch != experiment.steps_per_epoch:
            raise UserError(
                f"{folder} has a run on different data: its classes, image shape, pixel statistics or number of images "
                "differ. Choose another --workdir, or restore the data"
            )
        self.inputs = dataclasses.asdict(experiment.inputs)  # the words of the classes may have changed

    def _require_same_pictures(self, folder: Path, dataset: Dataset) -> None:
        before, now = self.fingerprint, dataset.fingerprint
        if before is None and now is not None:
            logger.warning(
                "%s: another version of inception_jax did not record the data of this run; it continues on the data "
                "given now",
                folder,
            )
            self.fingerprint = now
        elif before != now:
            what, way_out = "arrays", "workdir, or give the arrays that it started with"
            if dataset.cache:
                what = "pictures"
                way_out = "--workdir, or restore the pictures"
            differences = data.changes(dataset.cache, before or "", now or "")
            raise UserError(f"{folder} has a run on different {what}: {differences}. Choose another {way_out}")
