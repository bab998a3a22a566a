"""The graph of a network: its modules, the operations between them, and what flows where.

It is read from the program that `trace` records, so that it is right for any network. Modules are nested graphs.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from flax import linen as nn
from jax.extend import core

from inception_jax.inspection.trace import Trace, read_mark, trace, walk

INPUT, OUTPUT = -1, -2  # in the edges of a module's graph: what it is given, and what it returns

# Operations of `ops`, which name themselves, with the window and the strides if they have any.
_SCOPE = re.compile(r"(max_pool|avg_pool|adaptive_avg_pool|local_response_norm)(?:_(\d+)x(\d+))?(?:_(\d+)x(\d+))?")
# In words, what brings several arrays together, by JAX's primitive.
_JOIN_OF = {
    "add": "add",
    "add_any": "add",
    "concatenate": "concatenate",
    "div": "divide",
    "dot_general": "matrix product",
    "max": "maximum",
    "mul": "multiply",
    "sub": "subtract",
}
JOINS = tuple(dict.fromkeys(_JOIN_OF.values()))
_WINDOWS = {"reduce_window_max": "max pool", "reduce_window_sum": "avg pool", "reduce_window": "pool"}
_OVER_MAPS = {"reduce_max": "global max pool", "reduce_sum": "global avg pool"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A module, or an operation outside of all modules that changes maps or brings several together.

    Attributes:
      name: of the module in the one that it is part of; "" for an operation.
      kind: "convolution" or "linear" if that is all it computes, with norm and activation; else its class in words,
        "inception", or the operation, "max pool", "concatenate".
      window, strides, output, parameters: as in `trace.Row`.
      inside: the graph of a module that is more than one layer.
    """

    name: str
    kind: str
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    parameters: int = 0
    inside: "Graph | None" = None

    @property
    def joins(self) -> bool:
        """Whether it only brings several arrays together."""
        return self.kind in JOINS


@dataclasses.dataclass(frozen=True)
class Graph:
    """Blocks in the order in which they run, and edges (from, to) between their positions, INPUT and OUTPUT."""

    blocks: tuple[Block, ...]
    edges: tuple[tuple[int, int], ...]


def network_graph(model: nn.Module, image_shape: Sequence[int]) -> Graph:
    """The graph of any Linen network that `trace_layers` takes; nothing is computed.

    Its first block is the images. Reshapes, activations and whatever else has a single input is not shown unless it is
    a module of its own.

    Args:
      image_shape: (height, width, channels).

    Raises:
      UserError: the images are too small for the network.
    """
    reader = _Reader(trace(model, image_shape))
    graph = reader.graph(0)
    images = Block("", "images", output=tuple(image_shape))
    edges = ((source + 1 if source != INPUT else 0, target + 1) for source, target in graph.edges if target != OUTPUT)
    return Graph((images, *graph.blocks), tuple(edges))


@dataclasses.dataclass
class _Node:
    """A block without blocks inside; `owner` is the call it is part of, and `inputs` are positions of other nodes.

    An owner of -1 is none: the node is not drawn.
    """

    owner: int
    block: Block
    inputs: set[int]
    scope: str = ""


class _Reader:
    """Follows the images through the program: each variable has the position of the node that it comes from.

    None is what does not depend on the images, such as parameters, and INPUT the images themselves.
    """

    def __init__(self, traced: Trace):
        self.trace = traced
        # One box each: layers, and what has no layers in it. They hide what is inside.
        whole = [is_layer or not count for is_layer, count in zip(traced.is_layer, traced.layers, strict=True)]
        whole[0] = False
        self.hidden = [any(whole[outer] for outer in self._outer(index)) for index in range(len(whole))]
        self.whole = [one and not inside for one, inside in zip(whole, self.hidden, strict=True)]
        self.nodes: list[_Node] = []
        self.entered: dict[int, set[int]] = {}  # what each of the whole calls is given
        self.made: dict[int | tuple[int, str, int], int] = {}  # the nodes of calls, and of operations with a scope
        self.call = 0  # in which the equation at hand is
        walk(traced.program, [INPUT] * len(traced.program.invars), self._visit, constant=None, enters=self._enters)
        self._merge_concatenations()

    def _outer(self, index: int) -> Iterator[int]:
        """The calls that a call is part of, from the inside out."""
        while (parent := self.trace.parents[index]) is not None:
            yield (index := parent)

    def _enters(self, equation: core.JaxprEqn) -> bool:
        return not _scope(equation)

    def _visit(self, equation: core.JaxprEqn, into: list[int | None]) -> list[int | None]:
        sources = {source for source in into if source is not None}
        found = read_mark(equation)
        if found:
            place = self._pass(*found, sources)
        elif not sources:
            place = None
        elif self.whole[self.call] or self.hidden[self.call]:
            place = min(sources)  # only that it depends on the images matters here
        else:
            place = self._operation(equation, into, sources)
        return [place] * len(equation.outvars)

    def _pass(self, mark: str, index: int, sources: set[int]) -> int | None:
        """At the border of a call."""
        source = min(sources, default=None)
        if mark == "enter":
            self.call = index
            self.entered.setdefault(index, set()).update(sources)
            return source
        self.call = self.trace.parents[index] or 0
        if self.whole[index] and index not in self.made and self.entered.get(index):
            self.made[index] = self._add(self.call, self._block(index), self.entered[index])
        return self.made.get(index, source)

    def _operation(self, equation: core.JaxprEqn, into: Sequence[int | None], sources: set[int]) -> int:
        """The node of an equation outside of layers, or the node that it only passes on.

        Two equal operations of `ops`, one right after the other, count as one: nothing tells their equations apart.
        """
        scope, output = _scope(equation), _shape(equation.outvars[0])[1:]
        if scope:
            running = [place for place in sources if place >= 0 and self._is(place, scope)]
            first = (self.call, scope, min(sources))
            place = running[0] if running else self.made.get(first)
            if place is None:
                place = self.made[first] = self._add(self.call, _of_scope(scope), sources, scope)
            node = self.nodes[place]
            node.block = dataclasses.replace(node.block, output=output)
            return place
        block = _of_primitive(equation, into, several=len(sources) > 1)
        if block is None:
            return min(sources)
        return self._add(self.call, dataclasses.replace(block, output=output), sources)

    def _is(self, place: int, scope: str) -> bool:
        return self.nodes[place].scope == scope and self.nodes[place].owner == self.call

    def _add(self, owner: int, block: Block, inputs: set[int], scope: str = "") -> int:
        self.nodes.append(_Node(owner, block, set(inputs), scope))
        return len(self.nodes) - 1

    def _merge_concatenations(self) -> None:
        """What is concatenated only to be concatenated again goes into the outer one, as in the papers' figures."""
        for place, node in enumerate(self.nodes):
            readers = [reader for reader in self.nodes if place in reader.inputs]
            if node.block.kind == "concatenate" and len(readers) == 1:
                (reader,) = readers
                if reader.block.kind == "concatenate" and reader.owner == node.owner:
                    reader.inputs = reader.inputs - {place} | node.inputs
                    node.inputs = set()
                    node.owner = -1

    def _block(self, index: int, inside: Graph | None = None) -> Block:
        row = self.trace.rows[index]
        return Block(
            row.name.rpartition("/")[2],
            row.kind if inside is None else self.trace.modules[index],
            row.window if inside is None else (),
            row.strides if inside is None else (),
            row.output,
            row.parameters,
            inside,
        )

    def graph(self, owner: int) -> Graph:
        """What is in a call."""
        children: dict[int, tuple[str, int]] = {}  # by node: itself, or the call in the owner that it is part of
        for place, node in enumerate(self.nodes):
            if node.owner == owner:
                children[place] = ("node", place)
            elif node.owner >= 0:
                path = [node.owner, *self._outer(node.owner)]
                if owner in path:
                    children[place] = ("call", path[path.index(owner) - 1])
        order = {child: position for position, child in enumerate(dict.fromkeys(children.values()))}
        edges = {}  # as a set, but in order
        for place, node in enumerate(self.nodes):
            for source in sorted(node.inputs):
                start = order[children[source]] if source in children else INPUT
                end = order[children[place]] if place in children else OUTPUT
                if start != end and (start >= 0 or end >= 0):
                    edges[start, end] = None
        return Graph(tuple(self._child(*child) for child in order), tuple(edges))

    def _child(self, what: str, index: int) -> Block:
        if what == "node":
            return self.nodes[index].block
        unit = self._is_unit(index)
        return self._block(index, None if unit else self.graph(index))

    def _is_unit(self, call: int) -> bool:
        """Whether it is one layer, possibly with norms and other modules that keep its output's shape."""
        blocks = [
            node.block for node in self.nodes if node.owner >= 0 and call in (node.owner, *self._outer(node.owner))
        ]
        return (
            self.trace.layers[call] == 1
            and all(block.name for block in blocks)
            and len({block.output for block in blocks}) == 1
        )


def _scope(equation: core.JaxprEqn) -> str:
    """The name of the operation of `ops` that the equation is part of, "" if there is none."""
    name = str(equation.source_info.name_stack).rpartition("/")[2]
    return name if _SCOPE.fullmatch(name) else ""


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _of_scope(scope: str) -> Block:
    name, *sides = _SCOPE.fullmatch(scope).groups()  # type: ignore[union-attr]
    numbers = [int(side) for side in sides if side]
    return Block("", name.replace("_", " "), tuple(numbers[:2]), tuple(numbers[2:]))


def _of_primitive(equation: core.JaxprEqn, into: Sequence[int | None], *, several: bool) -> Block | None:
    """The block of an equation that changes maps or has several inputs; None for all others."""
    name, params = equation.primitive.name, equation.params
    if name in _WINDOWS:
        return Block(
            "", _WINDOWS[name], tuple(params["window_dimensions"][1:-1]), tuple(params["window_strides"][1:-1])
        )
    if name == "conv_general_dilated" and into[0] is not None:
        kernel, spatial = _shape(equation.invars[1]), params["dimension_numbers"].rhs_spec[2:]
        return Block("", "convolution", tuple(kernel[axis] for axis in spatial), tuple(params["window_strides"]))
    if name in _OVER_MAPS and len(_shape(equation.invars[0])) == 4 and {1, 2} <= set(params["axes"]):
        return Block("", _OVER_MAPS[name])
    return Block("", _JOIN_OF.get(name, name.replace("_", " "))) if several else None
