"""What everything that is shown as a page has in common: the Jinja environment, and charts with readable values."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import matplotlib.figure

from inception_jax.inspection import drawing
from inception_jax.text import page_text, printable


def environment(autoescape: bool | Callable[[str | None], bool] = True) -> jinja2.Environment:
    """For the package's templates: an undefined name is an error, and texts are made safe for pages.

    All pages include style.css, which needs the charts' palette.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("inception_jax"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=page_text,
    )
    made.globals["palette"] = drawing.palette_css()
    return made


@dataclasses.dataclass(frozen=True)
class LineChart:
    """Lines through points, whose values a page shows under the pointer, and which may have a second scale.

    Attributes:
      lines, styles, y_axis: see `drawing.draw_lines`.
      options: other options of `drawing.draw_lines`.
      show: formats a value.
    """

    lines: Mapping[str, drawing.Points]
    styles: Mapping[str, Mapping[str, Any]]
    y_axis: str = "auto"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    show: Callable[[float], str] = "{:.4g}".format

    def draw(self, y_axis: str | None = None) -> matplotlib.figure.Figure:
        """Draws the lines; with another y-axis than their own if one is given."""
        return drawing.draw_lines(self.lines, styles=self.styles, y_axis=y_axis or self.y_axis, **self.options)

    @property
    def other_axis(self) -> str | None:
        """The other y-axis that readers may switch to, see `drawing.other_axis`."""
        return drawing.other_axis(self.y_axis, drawing.all_values(self.lines, self.options.get("bands")))

    def for_page(self) -> dict[str, Any]:
        """The sources of its one or two drawings, and `values`: what the pages' script needs, as JSON.

        That is the names of all x, their places in each drawing, and each line's values at them, null where it has
        none.
        """
        other = self.other_axis
        figures = [self.draw(), *([self.draw(other)] if other else [])]
        sources = [drawing.data_uri(figure) for figure in figures]
        xs = sorted({x for points in self.lines.values() for x, _ in points})
        x_names = self.options.get("x_names")
        hues = {shade.light: name for name, shade in drawing.PALETTE.items()}
        lines = []
        for name, points in self.lines.items():
            values = {x: self.show(value) for x, value in points if math.isfinite(value)}
            hue = hues.get(self.styles[name]["color"], "text")
            lines.append({"name": printable(name), "hue": hue, "values": [values.get(x) for x in xs]})
        about = {
            "log": other == "linear",
            "xs": [printable(x_names[int(x)]) if x_names else f"epoch {x:g}" for x in xs],
            "places": [drawing.x_places(figure, xs) for figure in figures],
            "lines": lines,
        }
        return {"sources": sources, "values": about}
