"""Inspects networks, ours or any other in Linen: their layers, their cost, and what they see."""

from inception_jax.inspection.compare import Summary, bubble_chart, comparison, save_chart, summarize
from inception_jax.inspection.confusion import confusion_chart, save_confusion
from inception_jax.inspection.cost import latency, xla_multiply_adds
from inception_jax.inspection.diagram import Diagram, network_diagram
from inception_jax.inspection.features import activations, grad_cam
from inception_jax.inspection.gradients import gradient_norms
from inception_jax.inspection.papers import against_paper
from inception_jax.inspection.parameters import parameter_table
from inception_jax.inspection.pictures import Picture, feature_grid, filters, overlay
from inception_jax.inspection.table import LayerTable, layer_table
from inception_jax.inspection.trace import Row, trace_layers

__all__ = [
    "Diagram",
    "LayerTable",
    "Picture",
    "Row",
    "Summary",
    "activations",
    "against_paper",
    "bubble_chart",
    "comparison",
    "confusion_chart",
    "feature_grid",
    "filters",
    "grad_cam",
    "gradient_norms",
    "latency",
    "layer_table",
    "network_diagram",
    "overlay",
    "parameter_table",
    "save_chart",
    "save_confusion",
    "summarize",
    "trace_layers",
    "xla_multiply_adds",
]
