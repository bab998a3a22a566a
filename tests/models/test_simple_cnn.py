"""The sequential baseline's cost beside GoogLeNet's."""

import pytest

from inception_jax.inspection import layer_table
from inception_jax.models import SimpleCNN, create_model


@pytest.fixture(scope="module")
def googlenets():
    return layer_table(create_model("googlenet", num_classes=10, norm="lrn"), 224).total.multiply_adds


@pytest.mark.parametrize(
    ("options", "billions", "ratio"),
    [({}, 2.59, 1.64), ({"stem": "imagenet", "stage_convolutions": (2, 2, 3, 3)}, 0.93, 0.59)],
)
def test_the_docstring_has_its_cost_and_the_sources_share_of_googlenets(options, billions, ratio, googlenets):
    """The source's trains in 42 minutes on its CPU, GoogLeNet in 71: 0.59."""
    found = layer_table(create_model("simple_cnn", num_classes=10, **options), 224).total.multiply_adds
    assert round(found / 1e9, 2) == billions
    assert round(found / googlenets, 2) == ratio
    assert f"{billions} billion" in SimpleCNN.__doc__
    assert f"{ratio}" in SimpleCNN.__doc__
    assert round(42 / 71, 2) == 0.59


def test_the_strided_stem_halves_the_map_before_the_first_pool():
    table = layer_table(
        create_model("simple_cnn", num_classes=10, stem="imagenet", stage_convolutions=(1, 1, 2, 1)), 224
    )
    shapes = {row.name: row.output for row in table.rows}
    assert [shapes[f"conv{stage}_1"][0] for stage in (1, 2, 3, 4)] == [112, 56, 28, 14]
    assert "conv1_2" not in shapes
    assert shapes["conv3_2"] == (28, 28, 128)
