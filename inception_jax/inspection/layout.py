"""Where the boxes and lines of a network's drawing are: layers of boxes from the top down, after Sugiyama et al. 1981,
"Methods for visual understanding of hierarchical system structures"."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from inception_jax.inspection.graph import INPUT, OUTPUT, Block, Graph
from inception_jax.text import human, shortened, times, width

# All lengths are in units of the drawing, which are pixels of an SVG at its own size.
FONT = 11.0
LINE = 15.0  # height of a line of text
LETTER = 0.64 * FONT  # a letter's width in a wide font (DejaVu Sans, Verdana), on average
LONGEST = 34  # letters in a line
PAD = 8.0  # between a box and its text
BESIDE = 14.0  # between boxes in a row
GAP = 26.0  # between rows, where the lines run
MARGIN = 12.0  # between a module's frame and what is in it
_SIDE = 1e-4  # weight of lines and of side branches beside that of a box, if not all can be below what is above them
_ROUNDS = 12  # of ordering and aligning; the networks here need four


@dataclasses.dataclass(eq=False)
class Item:
    """A box, or the point at which a line passes a row.

    Attributes:
      block: None for a line's point.
      text: the box's lines.
      half: half the width of the folded box.
      height: of the folded box.
      inside: what is in the module.
      left, right: from `x` to the outer borders, also those of the opened module.
      x: center of the box, in the coordinates of the module that it is in.
    """

    block: Block | None = None
    text: tuple[str, ...] = ()
    half: float = 0.0
    height: float = 0.0
    inside: "Layout | None" = None
    left: float = 0.0
    right: float = 0.0
    x: float = 0.0


@dataclasses.dataclass
class Layout:
    """A module's rows of items, and for each row the lines to the next: pairs of positions in the two rows.

    A module's first and last rows are the points at which it begins and ends, at x = 0; the network has none of them.
    """

    rows: list[list[Item]]
    lines: list[list[tuple[int, int]]]

    @property
    def left(self) -> float:
        """From x = 0 to the leftmost border."""
        return max(item.left - item.x for row in self.rows for item in row)

    @property
    def right(self) -> float:
        """From x = 0 to the rightmost border."""
        return max(item.right + item.x for row in self.rows for item in row)

    def height(self, depth: int) -> float:
        """Of all rows, with modules open that are nested less than `depth` deep."""
        return sum(row_height(row, depth) for row in self.rows) + GAP * (len(self.rows) - 1)


def row_height(row: Sequence[Item], depth: int) -> float:
    """Of the highest item in it."""
    return max(item_height(item, depth) for item in row)


def item_height(item: Item, depth: int) -> float:
    """Of a box: open with what is in it if `depth` is more than 1, else folded."""
    if item.inside is None or depth <= 1:
        return item.height
    return item.height + item.inside.height(depth - 1)


def arrange(graph: Graph, depth: float = math.inf) -> Layout:
    """Places the boxes of a graph so that there is room for modules nested less than `depth` deep to open."""
    items = [_box(block, depth) for block in graph.blocks]
    is_module = any(start == INPUT for start, _ in graph.edges)
    ends = {INPUT: len(items), OUTPUT: len(items) + 1} if is_module else {}
    items += [Item() for _ in ends]
    edges = [(ends.get(start, start), ends.get(end, end)) for start, end in graph.edges]
    ranks = _ranks(len(items), edges, ends)
    rows: list[list[Item]] = [[] for _ in range(max(ranks) + 1)]
    weights = {item: 1.0 if leads else _SIDE for item, leads in zip(items, _leading(edges, len(items)), strict=True)}
    places: dict[Item, float] = {}
    for place, item in enumerate(items):
        rows[ranks[place]].append(item)
        places[item] = place + (0 if weights[item] == 1 else len(items))  # side branches on the right
    pairs = []
    for start, end in edges:
        before = items[start]
        for rank in range(ranks[start] + 1, ranks[end]):
            point = Item()
            rows[rank].append(point)
            weights[point] = _SIDE
            places[point] = end - 0.5
            pairs.append((before, point))
            before = point
        pairs.append((before, items[end]))
    for row in rows:
        row.sort(key=places.__getitem__)
    rows = _untangled(rows, pairs)
    _align(rows, pairs, weights)
    position = {item: place for row in rows for place, item in enumerate(row)}
    rank_of = {item: rank for rank, row in enumerate(rows) for item in row}
    lines: list[list[tuple[int, int]]] = [[] for _ in rows]
    for start, end in pairs:
        lines[rank_of[start]].append((position[start], position[end]))
    return Layout(rows, lines)


def _box(block: Block, depth: float) -> Item:
    """An item with a block's text, and with its insides if they may be open."""
    text = tuple(shortened(line, LONGEST) for line in describe(block))
    item = Item(block, text)
    item.half = max(46.0, max(map(width, text)) * LETTER / 2 + PAD)
    item.left = item.right = item.half
    item.height = LINE * len(text) + PAD
    if block.inside is not None and depth > 1:
        item.inside = arrange(block.inside, depth - 1)
        item.left = max(item.half, item.inside.left) + MARGIN
        item.right = max(item.half, item.inside.right) + MARGIN
    return item


def describe(block: Block) -> list[str]:
    """The lines of text in a block's box: its name, what it computes, and its output's shape and parameters."""
    size = " · ".join(filter(None, [times(block.output), human(block.parameters)]))
    if block.joins or block.kind == "images":
        return [" ".join(filter(None, [block.kind, size]))]
    kind = " ".join(filter(None, [times(block.window), block.kind]))
    if any(stride != 1 for stride in block.strides):
        kind += f", stride {times(block.strides[:1] if len(set(block.strides)) == 1 else block.strides)}"
    return list(filter(None, [block.name, kind, size]))


def _ranks(count: int, edges: Sequence[tuple[int, int]], ends: dict[int, int]) -> list[int]:
    """The row of each item: below all that it is fed by, and as near as possible to what it feeds."""
    order = [*([ends[INPUT]] if INPUT in ends else []), *(i for i in range(count) if i not in ends.values())]
    order += [ends[OUTPUT]] if OUTPUT in ends else []
    before: dict[int, list[int]] = {i: [start for start, end in edges if end == i] for i in order}
    after: dict[int, list[int]] = {i: [end for start, end in edges if start == i] for i in order}
    ranks = [0] * count
    lowest = 1 if INPUT in ends else 0
    for i in order:
        ranks[i] = max([ranks[start] + 1 for start in before[i]], default=0 if i == order[0] else lowest)
    if OUTPUT in ends:
        ranks[ends[OUTPUT]] = max(ranks[i] + (i != ends[OUTPUT]) for i in order)
    for i in reversed(order):
        if after[i] and i != order[0]:
            ranks[i] = min(ranks[end] for end in after[i]) - 1
    return ranks


def _leading(edges: Sequence[tuple[int, int]], count: int) -> list[bool]:
    """Whether each item is on a way to the last one; side branches, such as auxiliary heads, are not."""
    reached = {count - 1}
    while more := {start for start, end in edges if end in reached} - reached:
        reached |= more
    return [i in reached for i in range(count)]


def _untangled(rows: list[list[Item]], pairs: Sequence[tuple[Item, Item]]) -> list[list[Item]]:
    """The rows in an order with few crossings: each item goes to the mean position of its neighbors above or below."""
    best, fewest = rows, _crossings(rows, pairs)
    for round_ in range(_ROUNDS):
        if not fewest:
            break
        rows = [list(row) for row in rows]
        down = round_ % 2 == 0
        for row, neighbors in _sweep(rows, down):
            position = {item: place for place, item in enumerate(neighbors)}
            wanted = {}
            for place, item in enumerate(row):
                near = [position[other] for other in _neighbors(item, pairs, down) if other in position]
                wanted[item] = sum(near) / len(near) if near else place
            row.sort(key=wanted.__getitem__)
        crossings = _crossings(rows, pairs)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _sweep(rows: list[list[Item]], down: bool) -> list[tuple[list[Item], list[Item]]]:
    """Each row but the first with the one before it, downwards or upwards."""
    return (
        list(itertools.pairwise(rows))[::-1] if not down else [(row, above) for above, row in itertools.pairwise(rows)]
    )


def _neighbors(item: Item, pairs: Sequence[tuple[Item, Item]], above: bool) -> list[Item]:
    return [pair[0 if above else 1] for pair in pairs if pair[1 if above else 0] is item]


def _crossings(rows: Sequence[Sequence[Item]], pairs: Sequence[tuple[Item, Item]]) -> int:
    position = {item: (rank, place) for rank, row in enumerate(rows) for place, item in enumerate(row)}
    count = 0
    for rank in range(len(rows) - 1):
        lines = [(position[a][1], position[b][1]) for a, b in pairs if position[a][0] == rank]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(lines, 2))
    return count


def _align(rows: list[list[Item]], pairs: Sequence[tuple[Item, Item]], weights: dict[Item, float]) -> None:
    """Sets the items' x: near the mean of their neighbors, without overlap; at 0 if they are alone in their row."""
    starts = []  # of each row: x of its items if they are packed from 0
    for row in rows:
        gaps = [before.right + BESIDE + item.left for before, item in itertools.pairwise(row)]
        starts.append(np.concatenate([[0.0], np.cumsum(gaps)]))
        for item, x in zip(row, starts[-1] - starts[-1].mean(), strict=True):
            item.x = float(x)
    offsets = {id(row): start for row, start in zip(rows, starts, strict=True)}
    for round_ in range(_ROUNDS):
        down = round_ % 2 == 1
        for row, _ in _sweep(rows, down):
            wanted = []
            for item in row:
                near = _neighbors(item, pairs, down)
                shares = [weights[other] for other in near]
                mean = sum(w * other.x for w, other in zip(shares, near, strict=True)) / sum(shares) if near else item.x
                wanted.append(mean)
            start = offsets[id(row)]
            fitted = isotonic_regression(np.array(wanted) - start, weights=[weights[item] for item in row]).x + start
            for item, x in zip(row, fitted, strict=True):
                item.x = float(x)
    if rows[-1][0].block is None:  # a module, which is symmetric about where it begins and ends
        origin = (max(i.x + i.right for row in rows for i in row) + min(i.x - i.left for row in rows for i in row)) / 2
    else:
        origin = rows[0][0].x
    for row in rows:
        for item in row:
            item.x = item.x - origin if len(row) > 1 else 0.0
