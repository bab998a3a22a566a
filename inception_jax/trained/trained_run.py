"""A run as people use it from Python and in notebooks: what `inception_jax.load` and `fit` return."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.config import Config
from inception_jax.data.dataset import Dataset
from inception_jax.errors import UserError
from inception_jax.inspection.features import grad_cam
from inception_jax.inspection.pictures import Picture, overlay
from inception_jax.registry import check_trusted
from inception_jax.runs.metrics_log import read_metrics
from inception_jax.runs.records import read_summary
from inception_jax.runs.run import Run, load_run
from inception_jax.text import html_table, listed, printable
from inception_jax.trained import evaluate
from inception_jax.trained.contact_sheet import contact_sheet, sheet

ROWS_SHOWN = 10  # of a history


class History(Mapping[str, np.ndarray]):
    """The columns of a run's metrics.csv, one value per evaluated epoch; NaN where a row has none.

    `history["validation_top1"]` is an array; `history.frame()` a pandas data frame.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]]):
        names = dict.fromkeys(name for row in rows for name in row)
        self._columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def frame(self) -> Any:
        """The same as a pandas data frame.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingImports] (not required)
        except ModuleNotFoundError as error:
            raise UserError("a data frame needs pandas, which is not installed: pip install pandas") from error
        return pd.DataFrame(self._columns)

    def __repr__(self) -> str:
        epochs = self._columns.get("epoch", np.array([]))
        return f"History({len(epochs)} rows: {listed(list(self), 8)})"

    def _repr_html_(self) -> str:
        rows = list(zip(*self._columns.values(), strict=True))[-ROWS_SHOWN:]
        cells = [[f"{value:.4g}" for value in row] for row in rows]
        return html_table(list(self), cells)


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """A network's results on a split.

    Attributes:
      data: the name of the data set.
      split: the name of the split.
      top1: the share of the examples whose most probable class is correct.
      top5: the share of the examples whose class is among the five most probable ones.
      loss: the mean cross-entropy.
      calibration_error: see `evaluate.calibration_error`.
      count: number of examples.
      own: the run's metrics from outside the package, by name.
      predictions: of all examples, in the split's order.
    """

    data: str
    split: str
    top1: float
    top5: float
    loss: float
    calibration_error: float
    count: int
    predictions: evaluate.Predictions
    own: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        own = "".join(f"{name} {value:.4f}, " for name, value in self.own.items())
        return printable(
            f"Evaluation({self.data}, {self.split}: top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, "
            f"loss {self.loss:.4f}, {own}calibration error {self.calibration_error:.4f}, {self.count:,} examples)"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun(Run):
    """A run with its history, its results, and pictures that notebooks display.

    Attributes:
      dataset: what it was trained on if that was given to `fit`; None: it is loaded when it is needed.
    """

    dataset: Dataset | None = None

    @property
    def history(self) -> History:
        """The metrics of training, by column. Raises UserError if metrics.csv is damaged."""
        return History(read_metrics(self.folder / "metrics.csv"))

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: the results at the end of training; {} if it has not ended."""
        return read_summary(self.folder) or {}

    def evaluate(
        self,
        split: str | None = None,
        *,
        fields: Mapping[str, Any] | None = None,
        class_map: Mapping[str, str] | None = None,
        tta: str = "none",
        batch_size: int = 128,
    ) -> Evaluation:
        """Evaluates the network on a split of its own data, or of another data set; every example counts once.

        Args:
          split: None: test, or validation if there is no test split.
          fields: of `config.data` for other data, such as {"name": "cifar10"}, see `evaluate.load_for`.
          class_map, tta: see `evaluate.predictions`.

        Raises:
          UserError: as `evaluate.load_for` and `evaluate.predictions`.
        """
        split, dataset = self._data(split, fields, tta)
        found = evaluate.predictions(self, dataset, split, class_map=class_map, batch_size=batch_size, tta=tta)
        own = self.own_metrics()
        means, error = evaluate.metrics(found, own=own), evaluate.calibration_error(found)
        values = (means["top1"], means["top5"], means["loss"], error, int(means["count"]))
        return Evaluation(dataset.name, split, *values, found, {name: means[name] for name in own})

    def report(self) -> Path:
        """Writes the run's report.html with the findings on its test split, or why there are none; returns the file."""
        from inception_jax.trained.report import write_report  # takes a while to import
        from inception_jax.trained.report.findings import examine

        try:
            findings = examine(self.folder, checkpoint=self.checkpoint, trust_code=self.trusts_data)
        except UserError as error:  # for example, the data is no longer available
            findings = error
        return write_report(self.folder, findings={self.folder: findings})

    def show_batch(self, rows: int = 4, draws: int = 4) -> Picture:
        """Training images, each as it is stored and with `draws` samples of the augmentation, beside its class.

        Raises:
          UserError: the data is no longer available.
          UntrustedError: the augmentation is code from outside the package that is not trusted.
        """
        if rows < 1:
            raise UserError(f"rows={rows} is not allowed: it must be at least 1")
        augment = self.config.data.augment
        for name in (*augment.before, *augment.after):
            check_trusted("augmentation", str(name), self.folder, self.trusts_parts)
        _, dataset = self._data("train")
        return contact_sheet(dataset, self.config, rows=rows, draws=draws)

    def top_losses(self, number: int = 8, split: str | None = None) -> Picture:
        """The examples of a split with the highest losses: class, prediction and Grad-CAM for the prediction.

        Args:
          split: None: test, or validation if there is no test split.

        Raises:
          UserError: the data is no longer available; the network has no feature maps.
        """
        if number < 1:
            raise UserError(f"number={number} is not allowed: it must be at least 1")
        split, dataset = self._data(split)
        found = evaluate.predictions(self, dataset, split)
        rows = np.argsort(-evaluate.losses(found), kind="stable")[: min(number, int(found.counted.sum()))]
        images, _ = dataset.splits[split].gather(rows)
        heats = grad_cam(self.model, self.variables, self.normalize(images))
        seen = [overlay(image, heat).array for image, heat in zip(images, heats, strict=True)]
        shares, names = evaluate.confidence(found.logits[rows]), self.class_names
        said = zip(found.labels[rows], found.logits[rows].argmax(axis=1), shares, strict=True)
        captions = [f"{names[label]}, predicted {names[guess]} ({100 * share:.0f} %)" for label, guess, share in said]
        return sheet(captions, {"image": images, "Grad-CAM": np.stack(seen)})

    def _data(
        self, split: str | None, fields: Mapping[str, Any] | None = None, tta: str = "none"
    ) -> tuple[str, Dataset]:
        """A split's name, and the data that has it, see `evaluate.load_split`."""
        if self.dataset is None or fields:
            return evaluate.load_split(self, split, dict(fields or {}), tta=tta)
        known = [name for name in (split or "test", split or "validation") if name in self.dataset.splits]
        if not known:
            given = ", ".join(self.dataset.splits)
            raise UserError(f"the {self.dataset.name} have no {split or 'test or validation'} split; they have {given}")
        return known[0], self.dataset


def load(
    folder: str | Path,
    checkpoint: str | int = "best",
    *,
    dtype: Any = None,
    trust_code: bool = False,
    own: Config | None = None,
    dataset: Dataset | None = None,
) -> TrainedRun:
    """Loads a run's trained network, with its history and results.

    Args:
      folder: the run's.
      checkpoint: "best", or the latest one if there is no best one yet; "latest"; or the step of a kept checkpoint.
      dtype: "float32" or "bfloat16", for the network to compute in; None: the type it was trained in.
      trust_code: whether a network, data set, metrics and augmentation from outside the package, which the folder
        names, may be imported. Only for folders from people whom you would let run programs on your machine.
      own: a config of your own, whose names are trusted.
      dataset: what it was trained on, see `TrainedRun`.

    Raises:
      UserError: the folder does not contain a run or an intact checkpoint, or the best checkpoint is damaged.
      UntrustedError: the network is code from outside the package, and trust_code is False.
    """
    run = load_run(folder, checkpoint, dtype=dtype, trust_code=trust_code, own=own)
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return TrainedRun(**fields, dataset=dataset)
