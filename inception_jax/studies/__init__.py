"""Studies: variations of a config that are trained, held against what was published, and reported.

A study is a file with `get_study()`; this module has what it is written with, and is free of JAX.
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
