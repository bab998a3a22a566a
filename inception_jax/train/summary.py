"""The results of a run: summary.json, and the same in a few lines of text."""

import importlib.metadata
import logging
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from inception_jax import files, process
from inception_jax.config import Config
from inception_jax.config.validate import METRICS
from inception_jax.distributed import multihost
from inception_jax.errors import UserError
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.steps.state import TrainState, count_parameters
from inception_jax.text import format_seconds, printable
from inception_jax.train.evaluator import Evaluator
from inception_jax.train.record import TrainingRecord

logger = logging.getLogger(__name__)

PACKAGES = ("inception-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_summary(
    config: Config,
    folder: Path,
    state: TrainState,
    record: TrainingRecord,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    stopped: str,
) -> dict[str, Any]:
    """Evaluates the last and the best weights on the final splits; writes summary.json and returns its content.

    Args:
      stopped: why training ended, see `Events.ended`.

    Raises:
      EvaluationStopped: a stop was requested.
    """
    step = int(state.step)
    final = {split: evaluator(state.variables, split) for split in config.evaluate.final_splits}
    best_step, best_value, variables = _best_weights(config, state, record, checkpoints)
    best = final
    if best_step != step:
        best = {split: evaluator(variables, split) for split in config.evaluate.final_splits}
    watched = config.evaluate.watch if config.evaluate.splits else None
    summary = {
        "name": folder.name,
        "steps": step,
        "epochs": step / record.steps_per_epoch,
        **final,
        "best": {
            "step": best_step,
            "epoch": best_step / record.steps_per_epoch,
            "metric": watched if best_value is not None else None,
            "value": best_value,
            **best,
        },
        "watched": watched,
        "stopped": stopped,
        "images_per_second": record.training_images / record.training_seconds if record.training_seconds else None,
        "seconds": record.elapsed_seconds,
        "training_seconds": record.training_seconds,
        "evaluation_seconds": record.evaluation_seconds,
        "parameters": count_parameters(state.params),
        "device": describe_devices(evaluator.mesh),
        "versions": versions(),
    }
    if stopped == "callback":
        summary["stopped_by"] = record.ended_by
    if command := process.command():
        summary["command"] = command
    if multihost.is_first():
        files.write_json(folder / "summary.json", summary)
    return summary


def _best_weights(
    config: Config, state: TrainState, record: TrainingRecord, checkpoints: Checkpoints
) -> tuple[int, float | None, dict[str, Any]]:
    """Step, watched metric and variables of the best weights, or of the last ones if no metric was watched.

    If the best checkpoint is damaged or missing, the best of the remaining ones is used, with its own values.
    """
    step, best_step, value = int(state.step), record.best_step, record.best_value
    if value is None or best_step == step:
        return step, value, state.variables
    for candidate in checkpoints.best_steps():
        own = checkpoints.watched(candidate)
        try:
            variables = state.variables if candidate == step else checkpoints.restore(candidate, state)[0].variables
        except UserError as damage:
            logger.warning("%s", damage)
            continue
        break
    else:
        candidate, own, variables = step, None, state.variables
    if candidate != best_step:
        metric = config.evaluate.watch
        lost = "the best checkpoint" if best_step is None else f"the best checkpoint, that of step {best_step},"
        stands = f"that of step {candidate}" + ("" if own is None else f" ({metric} {own:g})")
        logger.warning("%s (%s %g) is missing or damaged; using %s instead", lost, metric, value, stands)
    return candidate, own, variables


def versions() -> dict[str, str]:
    """Versions of Python and the packages; in a Git checkout of this package also its commit, "-dirty" if changed."""
    found = {"python": platform.python_version()}
    found |= {package: importlib.metadata.version(package) for package in PACKAGES}
    root = Path(__file__).resolve().parents[2]
    with suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():  # otherwise Git would look for a repository further up, of another project
            command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            found["commit"] = done.stdout.strip()
    return found


def describe_result(summary: dict[str, Any]) -> list[str]:
    """The results as text: a line for the end of the run, one for the last weights, and one for the best."""
    ends = {"early": "stopped early", "target": "target reached"}
    ends["callback"] = f"ended by the callback {printable(summary.get('stopped_by') or '')}"
    end = ends.get(summary["stopped"], "completed")
    lines = [f"{printable(summary['name'])}: {end} after {format_seconds(summary['seconds'])}"]
    best = summary["best"]
    for which, step, epoch, means in (
        ("last", summary["steps"], summary["epochs"], summary),
        ("best", best["step"], best["epoch"], best),
    ):
        parts = [f"{which}: step {step}, epoch {epoch:g}"]
        if which == "best" and best["metric"] is not None:
            parts.append(f"by {best['metric']} {best['value']:.4f}")
        for split in ("train", "validation", "test"):
            if found := means.get(split):
                own = [name for name in found if name not in (*METRICS, "count")]
                shown = [f"{name} {found[name]:.4f}" for name in ("top1", "top5", "loss", *own)]
                parts.append(" ".join([split, *shown]))
        if which == "last" or best["metric"] is not None:  # otherwise the last ones are the best
            lines.append("  ".join(parts))
    return lines


def describe_devices(mesh: Mesh) -> str:
    """The number and kind of devices; for CPUs the model, if the system reports it, and the number of cores."""
    device = mesh.devices.flat[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = platform.machine()
        with suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
        kind += f", {os.cpu_count()} cores"
    return f"{mesh.size} x {device.platform} ({kind})"
