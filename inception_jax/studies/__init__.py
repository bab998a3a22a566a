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

__all__ = ["Claim", "CrossEvaluation", "Form", "Minimum", "Pair", "Range", "Search", "Study", "Variation"]
