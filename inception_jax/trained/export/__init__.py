"""Exports trained networks for other programs: StableHLO, ONNX, and the metadata needed to use them."""

from inception_jax.trained.export.exported import Exported, load_exported
from inception_jax.trained.export.write import export_run, export_weights, run_as_onnx

__all__ = ["Exported", "export_run", "export_weights", "load_exported", "run_as_onnx"]
