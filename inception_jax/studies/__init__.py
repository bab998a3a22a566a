"""Studies: train variations of a config, compare them with published results, and report.

A study is a file with `get_study()`. This module has the classes to define it, and does not import JAX.
"""

from inception_jax.studies.definitions import (
    Claim,
    CrossEvaluation,
    Form,
    Minimum,
    Pair,
    Range,
    Search,
    Study,
    Variation,
)
from inception_jax.studies.shared import (
    CPU_GOOGLENET,
    SELECTED_ON_TEST,
    SKAGERSTROM,
    WYATT,
    WYATT_AUGMENTATION,
    WYATT_GOOGLENET,
    WYATT_RESNET18,
    WYATT_VGG19,
    smoke,
)

__all__ = [
    "CPU_GOOGLENET",
    "SELECTED_ON_TEST",
    "SKAGERSTROM",
    "WYATT",
    "WYATT_AUGMENTATION",
    "WYATT_GOOGLENET",
    "WYATT_RESNET18",
    "WYATT_VGG19",
    "Claim",
    "CrossEvaluation",
    "Form",
    "Minimum",
    "Pair",
    "Range",
    "Search",
    "Study",
    "Variation",
    "smoke",
]
