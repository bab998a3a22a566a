"""Drawings of networks, as figures 2 and 3 of Szegedy et al. 2015: boxes, modules that open, and what flows where."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Bezier

from inception_jax.files import write_bytes
from inception_jax.inspection import drawing
from inception_jax.inspection.graph import JOINS, Graph, network_graph
from inception_jax.inspection.layout import (
    FONT,
    GAP,
    LETTER,
    LINE,
    PAD,
    Item,
    Layout,
    arrange,
    item_height,
    row_height,
)
from inception_jax.inspection.table import image_shape_of
from inception_jax.text import chart_label, printable, times, width

TEMPLATES = Path(__file__).parent.parent / "templates"

EDGE = 14.0  # around the drawing
TITLE = 26.0  # height of the line above it
POINT = 4.0  # of arrows
DOTS_PER_INCH = 108  # of a PNG; a unit of the drawing is 1/72 inch
CURVE = [Bezier.MOVETO, Bezier.CURVE4, Bezier.CURVE4, Bezier.CURVE4]
MOST_DOTS = 2**16 - 1  # on a side of a PNG, Matplotlib's limit

# Hues of the palette by what a block's kind ends with; modules have that of text.
HUES = {"convolution": "blue", "conv transpose": "blue", "linear": "orange", "pool": "red", "norm": "violet"}
HUES |= dict.fromkeys(JOINS, "green")


@dataclasses.dataclass(frozen=True, repr=False)
class Diagram:
    """A network's drawing; a notebook displays it.

    Attributes:
      title: the line above it.
      graph: what is drawn.
      depth: how many levels are shown: 1, all modules are folded; 2, the network's modules are open.
    """

    title: str
    graph: Graph
    depth: int = 1

    def save(self, path: str | Path) -> None:
        """Writes an SVG, in which a click or the Enter key opens and folds a module, a PNG or a PDF.

        Raises:
          UserError: the path does not end in .svg, .png or .pdf.
          WriteError: the file cannot be written.
        """
        path = Path(path)
        drawing.check_file(path, "diagram")
        if path.suffix.lower() == ".svg":
            write_bytes(path, self.svg().encode())
            return
        figure = self.figure()
        dots = min(DOTS_PER_INCH, *(MOST_DOTS / side for side in figure.get_size_inches()))
        drawing.save_figure(figure, path, dpi=dots)

    def svg(self) -> str:
        """The drawing as an SVG whose modules open, with the palette's colors for light and dark pages."""
        page = _Page.of(self, arrange(self.graph))
        size = {"width": f"{page.width:g}", "height": f"{page.height:g}"}
        root = ElementTree.Element("svg", size, xmlns="http://www.w3.org/2000/svg")
        root.set("viewBox", f"0 0 {page.width:g} {page.height:g}")
        root.set("data-gap", f"{GAP:g}")
        root.set("data-around", f"{page.height - page.layout.height(self.depth):g}")
        _add(root, "title").text = self.title
        _add(root, "style").text = drawing.palette_css() + (TEMPLATES / "diagram.css").read_text()
        _add(root, "rect", "page", width="100%", height="100%")
        _add(root, "text", "title", x=EDGE, y=EDGE + 11).text = self.title
        outer = _add(root, "g", transform=f"translate({page.x:g} {page.y:g})")
        outer.set("class", "graph")
        _svg_rows(outer, page.layout, self.depth)
        _add(root, "script").text = (TEMPLATES / "diagram.js").read_text()
        return ElementTree.tostring(root, encoding="unicode")

    @drawing.style()
    def figure(self) -> Figure:
        """The drawing as a Matplotlib figure, whose inch is 72 units of the drawing."""
        page = _Page.of(self, arrange(self.graph, self.depth))
        figure = Figure(figsize=(page.width / 72, page.height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        axes.set_axis_off()
        axes.text(EDGE, EDGE, chart_label(self.title), size=13, color="black", va="top")
        _draw_rows(axes, page.layout, self.depth, page.x, page.y)
        return figure

    def __repr__(self) -> str:
        images, *blocks = self.graph.blocks
        return f"Diagram({self.title}, images of {times(images.output)}: {len(blocks)} blocks)"

    def _repr_svg_(self) -> str:
        return self.svg()


@dataclasses.dataclass(frozen=True)
class _Page:
    """The size of a drawing, and where in it x = 0 and the first row are."""

    layout: Layout
    width: float
    height: float
    x: float
    y: float = EDGE + TITLE

    @classmethod
    def of(cls, diagram: Diagram, layout: Layout) -> "_Page":
        """The page with room for the title and the rows."""
        drawn, title = layout.left + layout.right, 1.2 * LETTER * width(diagram.title)
        size = max(drawn, title) + 2 * EDGE
        height = layout.height(diagram.depth) + 2 * EDGE + TITLE
        return cls(layout, size, height, (size - drawn) / 2 + layout.left)


def hue_of(kind: str) -> str:
    """The color of a kind of block: that of a module, if no other is known."""
    return next((hue for part, hue in HUES.items() if kind.endswith(part)), "ink")


def _add(parent: ElementTree.Element, tag: str, name: str = "", **attributes: float | str) -> ElementTree.Element:
    """A new element with a class and attributes, whose numbers have few digits."""
    given = {key: value if isinstance(value, str) else f"{value:.5g}" for key, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, ({"class": name} if name else {}) | given)


def _svg_rows(parent: ElementTree.Element, layout: Layout, depth: int) -> None:
    """A group for each row with its items and the lines below it, which the script moves as they are."""
    y = 0.0
    for rank, row in enumerate(layout.rows):
        highest = row_height(row, depth)
        group = _add(parent, "g", "row", transform=f"translate(0 {y:g})")
        for place, item in enumerate(row):
            _svg_item(group, item, depth, highest, goes_on=any(start == place for start, _ in layout.lines[rank]))
        lines = _add(group, "g", "lines", transform=f"translate(0 {highest:g})")
        for start, item in _lines(layout, rank):
            end = GAP - POINT if item.block else GAP
            curve = f"M{start:.5g} 0C{start:.5g} {end / 2:g} {item.x:.5g} {end / 2:g} {item.x:.5g} {end:g}"
            _add(lines, "path", d=curve)
            if item.block:
                arrow = f"M{item.x - POINT / 2:.5g} {end:g}h{POINT:g}l{-POINT / 2:g} {POINT + 1:g}z"
                _add(lines, "path", "arrow", d=arrow)
        y += highest + GAP


def _svg_item(parent: ElementTree.Element, item: Item, depth: int, highest: float, *, goes_on: bool) -> None:
    is_open = item.inside is not None and depth > 1
    group = _add(parent, "g", "item open" if is_open else "item", transform=f"translate({item.x:.5g} 0)")
    group.set("data-height", f"{item.height:g}")
    if item.inside is not None:
        inside = _add(group, "g", "inside", **({} if is_open else {"style": "display:none"}))
        sides = {"x": -item.left, "width": item.left + item.right, "height": item_height(item, depth)}
        _add(inside, "rect", "frame", rx=6, **sides)
        rows = _add(inside, "g", "graph", transform=f"translate(0 {item.height:g})")
        _svg_rows(rows, item.inside, depth - 1)
    if item.block:
        head = _add(group, "g")
        if item.inside is not None:
            head.attrib |= {"role": "button", "tabindex": "0", "aria-expanded": str(is_open).lower()}
        color = f"var(--{hue_of(item.block.kind)})"
        sides = {"x": -item.half, "width": 2 * item.half, "height": item.height}
        _add(head, "rect", "box", rx=4, style=f"fill:{color};stroke:{color}", **sides)
        for sign in ("+", "\N{MINUS SIGN}") if item.inside is not None else ():
            _add(head, "text", "less" if sign != "+" else "more", x=item.half - PAD, y=FONT + 1).text = sign
        for place, line in enumerate(item.text):
            bold = "name" if item.block.name and place == 0 else ""
            _add(head, "text", bold, y=_line_y(place) + FONT / 3).text = line
    if goes_on:
        _add(group, "line", "tail", y1=item_height(item, depth), y2=highest)


def _draw_rows(axes: Axes, layout: Layout, depth: int, x: float, y: float) -> None:
    """Draws with Matplotlib what `_svg_rows` writes, x = 0 and the first row at (x, y)."""
    ink = drawing.color("ink")
    for rank, row in enumerate(layout.rows):
        highest = row_height(row, depth)
        for place, item in enumerate(row):
            _draw_item(axes, item, depth, x + item.x, y)
            if any(start == place for start, _ in layout.lines[rank]):
                axes.plot([x + item.x] * 2, [y + item_height(item, depth), y + highest], color=ink, lw=1.1)
        y += highest
        for start, item in _lines(layout, rank):
            left, right, end = x + start, x + item.x, y + (GAP - POINT if item.block else GAP)
            middle = (y + end) / 2
            curve = Bezier([(left, y), (left, middle), (right, middle), (right, end)], CURVE)
            axes.add_patch(PathPatch(curve, fill=False, ec=ink, lw=1.1))
            if item.block:
                point = [(right - POINT / 2, end), (right + POINT / 2, end), (right, end + POINT + 1)]
                axes.add_patch(Polygon(point, fc=ink, lw=0))
        y += GAP


def _draw_item(axes: Axes, item: Item, depth: int, x: float, y: float) -> None:
    if item.block is None:
        return
    if item.inside is not None:
        sides = item.left + item.right, item_height(item, depth)
        axes.add_patch(_rounded(x - item.left, y, *sides, 6, fc=(drawing.color("ink"), 0.06), ec="#00000050"))
        _draw_rows(axes, item.inside, depth - 1, x, y + item.height)
    color = drawing.color(hue_of(item.block.kind))
    axes.add_patch(_rounded(x - item.half, y, 2 * item.half, item.height, 4, fc=(color, 0.16), ec=color, lw=1.2))
    for place, line in enumerate(item.text):
        weight = "bold" if item.block.name and place == 0 else "normal"
        middle = {"ha": "center", "va": "center_baseline", "color": "black", "size": FONT, "weight": weight}
        axes.text(x, y + _line_y(place), chart_label(line), **middle)


def _rounded(x: float, y: float, width: float, height: float, radius: float, **style: Any) -> FancyBboxPatch:
    return FancyBboxPatch((x, y), width, height, f"round,pad=0,rounding_size={radius}", **style)


def _line_y(place: int) -> float:
    """The middle of a line of text below its box's upper border."""
    return PAD / 2 + LINE * (place + 0.5)


def _lines(layout: Layout, rank: int) -> Iterator[tuple[float, Item]]:
    """The lines below a row: where each begins, and the item where it ends."""
    for start, end in layout.lines[rank]:
        yield layout.rows[rank][start].x, layout.rows[rank + 1][end]


def network_diagram(
    model: nn.Module,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    *,
    depth: int = 1,
    title: str | None = None,
) -> Diagram:
    """Draws a network, ours or any other in Linen, as it is traced; nothing is computed.

    Args:
      image_size: side of the images, or (height, width), pixels; None: the network's `native_image_size`, else 224.
      channels: of the images.
      depth: number of levels of nested modules that are shown at first.
      title: the line above the drawing; None: the network's class.

    Raises:
      UserError: the images are too small for the network.
    """
    graph = network_graph(model, image_shape_of(model, image_size, channels))
    return Diagram(printable(type(model).__name__ if title is None else title), graph, depth)
