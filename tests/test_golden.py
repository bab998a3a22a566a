"""One training step of three networks gives the numbers that it gave when they were committed, see golden.py."""

import json

import pytest
from golden import FILE, NETWORKS, one_step

# Between JAX 0.10 and 0.12, with and without XLA's optimizations, rounding in float64 moves them by less than 1e-12.
TOLERANCE = 1e-9


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "googlenet" else []) for name in NETWORKS]
)
def test_a_training_step_gives_the_same_numbers(name):
    assert one_step(name) == pytest.approx(json.loads(FILE.read_text())[name], rel=TOLERANCE)
