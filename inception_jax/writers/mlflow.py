"""MLflow (the extra `mlflow`): params, metrics and artifacts of one MLflow run for each folder."""

import importlib.util
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files
from inception_jax.writers import kept
from inception_jax.writers.protocol import RunWriter

KEPT = "mlflow.json"  # in the run's folder
EXPERIMENT = "inception_jax"  # unless MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID is set
MOST_PARAMS = 100  # in one request, by MLflow's REST API
TIMINGS = ("seconds", "images_per_second")  # which differ when steps are repeated


class MlflowWriter(RunWriter):
    """Writes to the server of MLFLOW_TRACKING_URI or, without one, to MLflow's default or the folder `mlruns`.

    MLflow stores every point that it receives, so points that it already has are not written again.
    """

    def __init__(self, folder: Path):
        import mlflow.entities

        self._entities = mlflow.entities
        self._folder = folder
        self._client = mlflow.MlflowClient(tracking_uri=_tracking_uri())
        self._run_id = self._kept_run() or self._new_run()
        self._client.update_run(self._run_id, status="RUNNING")
        self._known: dict[int, dict[str, float]] = {}  # the points that MLflow has, by step

    def _kept_run(self) -> str | None:
        """The MLflow run in which the folder's run was recorded; None if this server does not have it."""
        from mlflow.exceptions import MlflowException

        known = kept.read(self._folder / KEPT, "run_id")
        if not known:
            return None
        try:
            info = self._client.get_run(known["run_id"]).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return known["run_id"] if info.lifecycle_stage == "active" else None

    def _new_run(self) -> str:
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if not experiment_id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = self._client.create_run(experiment_id, run_name=self._folder.resolve().name).info.run_id
        files.write_json(self._folder / KEPT, {"run_id": run_id})
        return run_id

    def resume(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Reads which points MLflow has, and adds the rows that it lacks."""
        self._known = {}
        for name in self._client.get_run(self._run_id).data.metrics:
            for point in self._client.get_metric_history(self._run_id, name):
                self._known.setdefault(point.step, {})[name] = point.value
        for row in rows:
            self.write_scalars(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        known = self._known.setdefault(step, {})
        new = _unknown(known, scalars)
        if new:
            now = round(1000 * time.time())  # milliseconds
            points = [self._entities.Metric(name, float(value), now, step) for name, value in new.items()]
            self._client.log_batch(self._run_id, metrics=points)
            known |= new

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._client.log_text(self._run_id, text, f"{name}.txt")

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, batch in images.items():
            for number, image in enumerate(batch):
                place = f"images/{name}-{step}" if len(batch) == 1 else f"images/{name}-{step}-{number}"
                self._client.log_image(self._run_id, image, artifact_file=f"{place}.png")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the config as params. Params cannot change, so a field that did is also a tag with its new value."""
        known = self._client.get_run(self._run_id).data.params
        texts = {name: str(value) for name, value in hparams.items()}
        new = [self._entities.Param(name, text) for name, text in texts.items() if name not in known]
        for first in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=new[first : first + MOST_PARAMS])
        for name, text in texts.items():
            if known.get(name, text) != text:
                self._client.set_tag(self._run_id, name, text)

    def write_file(self, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path))

    def flush(self) -> None:
        """Does nothing: every call has been answered by MLflow."""

    def close(self) -> None:
        ended = (self._folder / "summary.json").exists()
        self._client.set_terminated(self._run_id, "FINISHED" if ended else "KILLED")


def _unknown(known: Mapping[str, float], scalars: Mapping[str, float]) -> dict[str, float]:
    """Those of a step's values that are not known; all, if one of them is another than before.

    A resumed run repeats steps with the same results, but timings. After a loss that was not finite, results differ.
    """

    def differs(name: str, value: float) -> bool:
        return name in known and known[name] != value and not (math.isnan(known[name]) and math.isnan(value))

    if any(differs(name, value) for name, value in scalars.items() if name not in TIMINGS):
        return dict(scalars)
    return {name: value for name, value in scalars.items() if name not in known}


def _tracking_uri() -> str:
    import mlflow

    uri, chosen = mlflow.get_tracking_uri(), mlflow.is_tracking_uri_set()
    if not chosen and uri.startswith("sqlite:") and importlib.util.find_spec("sqlalchemy") is None:
        uri = Path("mlruns").absolute().as_uri()  # MLflow's default needs a package that mlflow-skinny has not
    if uri.startswith("file:") or "://" not in uri:
        # MLflow recommends a database, and refuses to use a folder unless this is set.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return uri
