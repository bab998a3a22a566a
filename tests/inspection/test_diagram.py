"""Drawings of networks: what is connected, against the papers' figures; boxes that do not overlap; files."""

import itertools
import math
from functools import partial
from xml.etree import ElementTree

import browser
import jax
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import OneBlock
from PIL import Image

from inception_jax import create_model, layer_table, list_models, network_diagram
from inception_jax.errors import UserError
from inception_jax.inspection.graph import INPUT, OUTPUT, network_graph
from inception_jax.inspection.layout import arrange, item_height
from inception_jax.models.branches import BranchedModule
from inception_jax.models.inception_v3 import figure_7
from inception_jax.models.layers import ConvUnit, MaxPool


def drawn(name, size, **options):
    return network_graph(create_model(name, num_classes=10, **options), (size, size, 3))


def block(graph, name):
    (found,) = [block for block in graph.blocks if block.name == name]
    return found


def named_edges(graph):
    """Edges by the names of modules, and the kinds of operations."""
    names = {place: block.name or block.kind for place, block in enumerate(graph.blocks)}
    names |= {INPUT: "in", OUTPUT: "out"}
    return {(names[start], names[end]) for start, end in graph.edges}


def test_an_inception_module_is_figure_2b():
    graph = block(drawn("googlenet", 32), "inception_3a").inside
    assert named_edges(graph) == {
        ("in", "conv_1x1"), ("conv_1x1", "concatenate"),
        ("in", "conv_3x3_reduce"), ("conv_3x3_reduce", "conv_3x3"), ("conv_3x3", "concatenate"),
        ("in", "conv_5x5_reduce"), ("conv_5x5_reduce", "conv_5x5"), ("conv_5x5", "concatenate"),
        ("in", "max pool"), ("max pool", "pool_proj"), ("pool_proj", "concatenate"),
        ("concatenate", "out"),
    }  # fmt: skip
    (pool,) = [block for block in graph.blocks if block.kind == "max pool"]
    assert (pool.window, pool.strides, pool.output) == ((3, 3), (1, 1), (4, 4, 192))
    conv = block(graph, "conv_5x5")
    assert (conv.kind, conv.window, conv.output, conv.inside) == ("convolution", (5, 5), (4, 4, 32), None)


def test_auxiliary_heads_and_norms_are_where_the_paper_has_them():
    graph = drawn("googlenet", 32, aux_heads=True, norm="lrn")
    edges = named_edges(graph)
    assert {("inception_4a", "aux1"), ("inception_4a", "inception_4b"), ("inception_4d", "aux2")} <= edges
    assert not [edge for edge in edges if edge[0] in ("aux1", "aux2", "fc")]
    kinds = [block.name or block.kind for block in graph.blocks]
    assert kinds[:8] == [
        "images", "conv1", "pool_1", "local response norm", "conv2", "conv3", "local response norm", "pool_2"
    ]  # fmt: skip
    head = block(graph, "aux1").inside
    assert [block.name or block.kind for block in head.blocks] == [
        "adaptive avg pool", "conv", "fc1", "Dropout_0", "fc2"
    ]  # fmt: skip


def test_what_is_concatenated_twice_is_so_once_as_in_figure_7_of_inception_v3():
    module = OneBlock(partial(BranchedModule, figure_7(factorized=True)))
    edges = named_edges(block(network_graph(module, (4, 4, 8)), "block").inside)
    into = {start for start, end in edges if end == "concatenate"}
    assert into == {"conv_1x1", "conv_1x3", "conv_3x1", "double_1x3", "double_3x1", "pool_proj"}
    assert not [edge for edge in edges if edge[0] == "concatenate"]


def test_shortcuts_go_around_the_convolutions():
    graph = drawn("resnet18", 32, stem="small")
    assert named_edges(block(graph, "stage1_block1").inside) == {
        ("in", "conv1"), ("conv1", "conv2"), ("conv2", "add"), ("in", "add"), ("add", "out")
    }  # fmt: skip
    assert named_edges(block(graph, "stage2_block1").inside) == {
        ("in", "conv1"), ("conv1", "conv2"), ("conv2", "add"), ("in", "projection"), ("projection", "add"),
        ("add", "out"),
    }  # fmt: skip


class Down(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="conv")(x)), (2, 2), (2, 2))


class Foreign(nn.Module):
    """A small U-Net with what our own networks do not have: calls of one module twice, remat, a gate."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.remat(ConvUnit, static_argnums=(2,))(4, (3, 3), name="unit")(images, train)
        shared = nn.Conv(4, (1, 1), name="shared")
        low = shared(shared(Down(name="down")(x)))
        up = jax.image.resize(low, x.shape, "nearest")
        x = nn.GroupNorm(2, name="norm")(jnp.concatenate([up, x], axis=-1))
        x = x * nn.sigmoid(nn.Dense(8, name="gate")(x.mean((1, 2))))[:, None, None]
        return nn.Dense(3, name="fc")(nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


def test_any_linen_network_is_drawn():
    graph = network_graph(Foreign(), (8, 8, 1))
    edges = {
        (graph.blocks[start].name or graph.blocks[start].kind, graph.blocks[end].name or graph.blocks[end].kind)
        for start, end in graph.edges
    }
    assert edges == {
        ("images", "unit"), ("unit", "down"), ("down", "shared"), ("shared", "shared"), ("shared", "concatenate"),
        ("unit", "concatenate"), ("concatenate", "norm"), ("norm", "global avg pool"), ("global avg pool", "gate"),
        ("gate", "multiply"), ("norm", "multiply"), ("multiply", "avg pool"), ("avg pool", "fc"),
    }  # fmt: skip
    assert [(b.kind, b.window, b.strides) for b in block(graph, "down").inside.blocks] == [
        ("convolution", (3, 3), (1, 1)), ("max pool", (2, 2), (2, 2))
    ]  # fmt: skip
    assert_fits(graph)


class Twice(nn.Module):
    """Two equal pools, one after the other."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = MaxPool((2, 2), (1, 1), name="first")(images)
        return nn.Dense(2, name="fc")(MaxPool((2, 2), (1, 1), name="second")(x).mean((1, 2)))


def test_equal_pools_one_after_the_other_are_two():
    assert [block.name for block in network_graph(Twice(), (8, 8, 1)).blocks[1:3]] == ["first", "second"]


def leaves(graph):
    for one in graph.blocks:
        yield from leaves(one.inside) if one.inside else [one]


def assert_fits(graph, depth=math.inf):
    """Boxes do not overlap, modules hold what is in them, and the lines are the graph's edges."""
    layout = arrange(graph, depth)
    for row in layout.rows:
        for before, item in itertools.pairwise(row):
            assert before.x + before.right < item.x - item.left
    items = [item for row in layout.rows for item in row]
    for item in items:
        if item.inside is not None:
            assert item.left > item.inside.left
            assert item.right > item.inside.right
            assert item_height(item, 2) > item.height + sum(max(i.height for i in row) for row in item.inside.rows)
            assert_fits(item.block.inside, depth - 1)
    found = set()
    lines = [
        (layout.rows[rank][start], layout.rows[rank + 1][end])
        for rank, pairs in enumerate(layout.lines)
        for start, end in pairs
    ]
    ends = {id(layout.rows[0][0]): INPUT, id(layout.rows[-1][0]): OUTPUT}
    places = {id(item): place for item in items for place, one in enumerate(graph.blocks) if one is item.block}
    places |= {key: end for key, end in ends.items() if key not in places}
    for start, end in lines:
        if id(start) in places:
            while id(end) not in places:
                (end,) = [after for before, after in lines if before is end]
            found.add((places[id(start)], places[id(end)]))
    assert found == set(graph.edges)


SOME = ["alexnet", "googlenet", "resnet18", "small_inception", "vgg11"]  # one of each kind of wiring


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_every_network_is_drawn_whole(name):
    model = create_model(name, num_classes=10)
    size = max(model.min_image_size, 32)
    graph = network_graph(model, (size, size, 3))
    assert sum(one.parameters for one in leaves(graph)) == layer_table(model, size).total.parameters
    assert_fits(graph)
    assert_fits(graph, depth=1)


def test_files(tmp_path):
    diagram = network_diagram(create_model("small_inception", num_classes=10), title="a <b> $x$\x1b[31m")
    assert diagram.title == r"a <b> $x$\x1b[31m"
    for kind, depth in (("png", 1), ("png", 2), ("svg", 1), ("pdf", 1)):
        network_diagram(create_model("small_inception", num_classes=10), depth=depth, title="a <b> $x$").save(
            tmp_path / f"{depth}.{kind}"
        )
    with Image.open(tmp_path / "1.png") as folded, Image.open(tmp_path / "2.png") as whole:
        assert folded.width < whole.width
        assert folded.height < whole.height
    assert (tmp_path / "1.pdf").read_bytes().startswith(b"%PDF")
    root = ElementTree.parse(tmp_path / "1.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b> $x$", "images 32x32x3", "inception1", "conv_3x3", "3x3 convolution", "fc"} <= set(texts)
    with pytest.raises(UserError, match=r"drawing\.gif is not allowed for a diagram: it must end in"):
        diagram.save(tmp_path / "drawing.gif")


def test_modules_open_in_a_browser(tmp_path):
    path = tmp_path / "network.html"  # the SVG as a page shows it
    path.write_text(network_diagram(create_model("small_inception", num_classes=10)).svg())
    height = "+document.querySelector('svg').getAttribute('height')"
    with browser.browser() as started, browser.page(started, path.as_uri(), 1400) as shown:
        before, inside = shown.evaluate(height), shown.get_by_text("conv_3x3").first
        assert not inside.is_visible()
        head = shown.get_by_role("button").first
        head.click()
        assert inside.is_visible()
        opened = shown.evaluate(height)
        following = shown.get_by_text("conv2").bounding_box()
        assert before < opened
        assert following["y"] > inside.bounding_box()["y"]
        head.press("Enter")
        assert not inside.is_visible()
        assert shown.evaluate(height) == before
