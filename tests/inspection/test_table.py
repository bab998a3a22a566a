"""The table of a network's layers against the papers' arithmetic, and against XLA's own count."""

import csv
import io
from typing import NamedTuple

import jax
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import DEEPER, count, shapes

from inception_jax import create_model, layer_table, list_models
from inception_jax.errors import UserError
from inception_jax.inspection import against_paper, papers, xla_multiply_adds
from inception_jax.models.googlenet import TABLE_1
from inception_jax.models.layers import ConvUnit, MaxPool
from inception_jax.text import format_table, human


def googlenet(**options):
    return create_model("googlenet", num_classes=1000, **options)


def test_googlenets_table_reads_like_table_1():
    table = layer_table(googlenet(norm="lrn"))
    assert table.image_shape == (224, 224, 3)
    # Type, patch and stride, output size and depth as the paper prints them; its conv2 is our conv2 and conv3.
    assert [(row.name, row.kind, row.window, row.strides, row.output, row.depth) for row in table.rows[:6]] == [
        ("conv1", "convolution", (7, 7), (2, 2), (112, 112, 64), 1),
        ("pool_1", "max pool", (3, 3), (2, 2), (56, 56, 64), 0),
        ("conv2", "convolution", (1, 1), (1, 1), (56, 56, 64), 1),
        ("conv3", "convolution", (3, 3), (1, 1), (56, 56, 192), 1),
        ("pool_2", "max pool", (3, 3), (2, 2), (28, 28, 192), 0),
        ("inception_3a", "inception", (), (), (28, 28, 256), 2),
    ]
    inceptions = [row for row in table.rows if row.kind == "inception"]
    assert [(row.name, tuple(row.filters.values())) for row in inceptions] == [
        (name, tuple(row)) for name, row in TABLE_1.items() if not isinstance(row, str)
    ]
    assert [row.output for row in inceptions[2:]] == [(14, 14, 512)] * 3 + [
        (14, 14, 528), (14, 14, 832), (7, 7, 832), (7, 7, 1024)
    ]  # fmt: skip
    assert [(row.kind, row.window, row.output) for row in table.rows[-3:]] == [
        ("avg pool", (7, 7), (1024,)), ("dropout", (), (1024,)), ("linear", (), (1000,))
    ]  # fmt: skip
    assert table.total.depth == 22  # the paper's "22 layers deep when counting only layers with parameters"
    assert table.total.parameters == sum(row.parameters for row in table.rows) == 6_998_552
    assert table.total.multiply_adds == sum(row.multiply_adds for row in table.rows) == 1_582_671_872


def test_the_naive_5x5_path_costs_112_9_million_and_the_reduced_one_5_3():
    naive = layer_table(create_model("googlenet_naive", num_classes=1000), depth=2)
    assert naive["inception_4a/conv_5x5"].multiply_adds == 14 * 14 * 480 * 48 * 25 == 112_896_000
    assert naive["inception_4a"].filters.keys() == {"conv_1x1", "conv_3x3", "conv_5x5", "pool_proj"}
    reduced = layer_table(googlenet(), depth=2)
    paths = ("inception_4a/conv_5x5_reduce", "inception_4a/conv_5x5")
    assert sum(reduced[path].multiply_adds for path in paths) == 14 * 14 * (480 * 16 + 16 * 48 * 25) == 5_268_480


def test_deeper_tables_have_the_rows_of_the_modules_within_right_after_their_own():
    names = [row.name for row in layer_table(googlenet(), 32, depth=3).rows]
    index = names.index("inception_3a")
    assert names[index : index + 4] == [
        "inception_3a", "inception_3a/conv_1x1", "inception_3a/conv_1x1/conv", "inception_3a/conv_1x1/norm"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "depth", "size", "options"),
    [
        ("googlenet", 22, 33, {"aux_heads": True, "residual": "projection"}),
        ("resnet18", 18, 64, {}),
        ("resnet34", 34, 40, {"stem": "small"}),
        ("vgg11", 11, 64, {"norm": "batch"}),
    ],
)
def test_parameters_are_all_there_and_depth_is_the_number_in_the_name(name, depth, size, options):
    total = layer_table(create_model(name, num_classes=7, **options), size, channels=1, depth=3).total
    assert total.parameters == count(shapes(name, size=size, channels=1, num_classes=7, **options)[1])
    assert total.depth == depth


class Widths(NamedTuple):
    left: int
    right: int
    note: str = "no module has this name"


class Branches(nn.Module):
    table: Widths

    @nn.compact
    def __call__(self, x):
        left = nn.Conv(self.table.left, (3, 3), padding="VALID", feature_group_count=2, name="left")(x)
        right = nn.ConvTranspose(self.table.right, (2, 2), (2, 2), name="right")(x)
        return left, right


class WrappedDense(nn.Dense):
    def __call__(self, x):
        return nn.relu(super().__call__(x))


class Foreign(nn.Module):
    """What our own networks do not have: setup, calls of one module twice, remat, groups, tuples, other shapes."""

    def setup(self):
        self.shared = nn.Conv(4, (1, 3), strides=(1, 2), padding="SAME")
        self.branches = Branches(Widths(6, 5))
        self.unit = nn.remat(ConvUnit, static_argnums=(2,))(8, (3, 3))
        self.head = nn.DenseGeneral((2, 5))
        self.out = WrappedDense(3)

    def __call__(self, images, *, train):
        x = self.shared(self.shared(images))
        left, right = self.branches(x)
        x = self.unit(left, train).mean((1, 2)) + right.mean((1, 2, 3))[:, None]
        return self.out(self.head(x).reshape(len(images), -1))


def test_any_linen_network_is_counted():
    table = layer_table(Foreign(), (8, 16), channels=4, depth=2)
    rows = [(row.name, row.kind, row.depth, row.parameters, row.multiply_adds) for row in table.rows]
    shared, left, right = 3 * 4 * 4 + 4, 9 * 2 * 6 + 6, 4 * 4 * 5 + 5
    left_cost, right_cost = 6 * 2 * 9 * 2 * 6, 8 * 4 * 4 * 4 * 5
    assert rows[:5] == [
        ("shared", "convolution", 1, shared, 8 * 8 * 3 * 4 * 4),
        ("shared", "convolution", 1, 0, 8 * 4 * 3 * 4 * 4),
        ("branches", "branches", 1, left + right, left_cost + right_cost),
        ("branches/left", "convolution", 1, left, left_cost),
        ("branches/right", "conv transpose", 1, right, right_cost),
    ]
    assert table["branches"].filters == {"left": 6, "right": 5}
    assert table["branches"].output == ()
    assert (table["unit"].multiply_adds, table["unit"].depth) == (6 * 2 * 9 * 6 * 8, 1)
    assert (table["head"].kind, table["head"].multiply_adds, table["head"].output) == ("linear", 80, (2, 5))
    assert (table["out"].multiply_adds, table["out"].parameters) == (30, 33)
    assert table.total.depth == 6
    variables = jax.eval_shape(lambda: Foreign().init(jax.random.key(0), jnp.zeros((1, 8, 16, 4)), train=False))
    assert table.total.parameters == count(variables)
    with pytest.raises(KeyError):
        table["left"]


def test_images_that_are_too_small_are_answered_with_the_smallest():
    with pytest.raises(UserError, match="images of 78x78 pixels are too small for this network: use at least 79x79"):
        layer_table(googlenet(aux_heads=True, aux_pool="paper"), 78)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("googlenet", "resnet50", "vgg16") else pytest.mark.slow)
        for name in list_models()
        # The Tiny VGGs' layers are of the same kinds.
        if (name not in DEEPER - {"vgg16"} and name[:-1] != "tiny_vgg_") or name == "tiny_vgg_e"
    ],
)
def test_xla_counts_the_same(name):
    """Within 2 %: its count has the additions of biases, pooling and activations in it."""
    model = create_model(name, num_classes=1000)
    own, xla = layer_table(model).total.multiply_adds, xla_multiply_adds(model)
    assert own < xla < 1.02 * own


def test_xla_counts_products_with_padding():
    """A 5x5 kernel on a 2x2 map: without these, XLA counts 4 x 4 products, not 4 x 25."""

    class Padded(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            x = nn.Conv(8, (5, 5), padding="SAME", kernel_dilation=2, use_bias=False)(images)
            return ConvUnit(8, (5, 5), norm="none", use_bias=False, activation=None)(x, train)

    assert layer_table(Padded(), 2, channels=16).total.multiply_adds == 4 * 25 * 8 * (16 + 8)
    assert xla_multiply_adds(Padded(), 2, channels=16) == pytest.approx(4 * 25 * 8 * (16 + 8), rel=1e-3)


def test_against_the_paper_the_stem_4c_and_5a_differ():
    rows = [row[0] for row in csv.reader(io.StringIO(against_paper(layer_table(googlenet()), "csv"))) if row[-1] == "*"]
    assert rows == ["convolution", "inception (4c)", "inception (5a)", "total"]
    page = against_paper(layer_table(googlenet(norm="lrn")))
    (stem,) = [line.split() for line in page.splitlines() if line.startswith("convolution  ")]
    assert stem == ["convolution", "2.7K", "9.2K", "+240.3%", "34M", "118.0M", "+247.1%", "*"]


def test_what_the_note_says_of_the_papers_table_is_so():
    printed = papers.SZEGEDY_2015
    table = layer_table(googlenet())
    assert table["conv1"].weights == 9_408
    separable = 7 * 7 * 3 * 8 + 24 * 64
    assert (separable, round(separable * 112 * 112 / 1e6)) == (2_712, printed["convolution"].ops)
    assert round(463 * 1024 * 14 * 14 / 1e6) == 93
    wider = table["inception_5a"].weights + (928 - 832) * (256 + 160 + 32 + 128)
    assert (wider, round(wider * 7 * 7 / 1e6)) == (1072 * 1024, printed["inception (5a)"].ops)
    others = set(printed) - {"convolution", "inception (5a)"}
    wrong = {
        name
        for name in others
        if round(sum(table[layer].multiply_adds for layer in printed[name].layers) / 1e6) != printed[name].ops
    }
    assert wrong == {"inception (4a)"}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet18", 224, "this network has no conv2"),
        ("googlenet", 64, "these are 64x64x3"),
    ],
)
def test_the_papers_table_is_for_its_own_network_and_size(name, size, message):
    with pytest.raises(UserError, match=f"the paper's table is of googlenet for images of 224x224x3; {message}"):
        against_paper(layer_table(create_model(name, num_classes=10), size))


def test_csv_is_exact_and_markdown_is_a_table():
    table = layer_table(create_model("simple_cnn", num_classes=10, stage_features=(4,)), 8)
    rows = list(csv.DictReader(io.StringIO(table.format("csv"))))
    assert rows[0] == {
        "layer": "conv1_1", "type": "convolution", "patch": "3x3", "stride": "1", "output": "8x8x4", "depth": "1",
        "parameters": "112", "parameters_share": "0.361290", "multiply_adds": "6912", "multiply_adds_share": "0.427511",
    }  # fmt: skip
    assert (rows[-1]["layer"], rows[-1]["parameters"]) == ("total", "310")
    assert table._repr_markdown_().splitlines()[:3] == [
        "| layer | type | patch/stride | output | depth | parameters | share | multiply-adds | share |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| conv1_1 | convolution | 3x3/1 | 8x8x4 | 1 | 112 | 36.1% | 6.912K | 42.8% |",
    ]
    assert str(table).splitlines()[4].split() == ["pool1", "max", "pool", "2x2/2", "4x4x4"]


def test_strides_that_differ_are_both_shown():
    class Pool(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return MaxPool((1, 2), (1, 2), name="pool")(images)

    assert layer_table(Pool(), 4).format().splitlines()[2].split() == ["pool", "max", "pool", "1x2/1x2", "4x2x3"]


def test_formats():
    assert [human(number) for number in (0, 7, 999, 1_000, 112_896_000, 999_960, 1_582_671_872)] == [
        "", "7", "999", "1.000K", "112.9M", "1.000M", "1.583G"
    ]  # fmt: skip
    assert format_table(["a", "b"], [["x", "1"], ["yy", "22"]]) == "a    b\n--  --\nx    1\nyy  22"
    with pytest.raises(UserError, match="unknown format 'html'"):
        format_table(["a"], [], "html")
