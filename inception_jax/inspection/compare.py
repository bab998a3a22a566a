"""Compares networks: their cost and, if known, their accuracy."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.transforms import Bbox

from inception_jax import files
from inception_jax.errors import UserError, WriteError
from inception_jax.inspection import drawing
from inception_jax.inspection.cost import latency
from inception_jax.inspection.trace import trace_layers
from inception_jax.text import chart_label, format_table, human, times


class Accuracy(NamedTuple):
    """Share of a data set's images that are classified correctly, and who measured it."""

    top1: float
    data: str
    source: str


def _imagenet(source: str, **percent: float) -> dict[str, Accuracy]:
    return {name: Accuracy(top1 / 100, "ImageNet", source) for name, top1 in percent.items()}


# On one center crop of the validation images, with weights published by others.
IMAGENET: Mapping[str, Accuracy] = (
    _imagenet(
        "torchvision, IMAGENET1K_V1",
        alexnet=56.522, inception_v3=77.294,
        resnet18=69.758, resnet34=73.314, resnet50=76.130, resnet101=77.374, resnet152=78.312,
        vgg11=69.020, vgg13=69.928, vgg16=71.592, vgg19=72.376,
        vgg11_bn=70.370, vgg13_bn=71.586, vgg16_bn=73.360, vgg19_bn=74.218,
    )
    | _imagenet("torchvision, IMAGENET1K_V1, whose third branch has 3x3 kernels", googlenet=69.778)
    | _imagenet("timm, results-imagenet.csv, tf_in1k", inception_v4=80.156, inception_resnet_v2=80.462)
    | _imagenet("Szegedy et al. 2016, Table 3", bn_inception=74.8, inception_v2=76.6)
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Summary:
    """One row of a comparison.

    Attributes:
      image_shape: (height, width, channels) of the images that the costs are for.
      multiply_adds: for one image, see Row.
      file_bytes: parameters and statistics as float32.
      latency: seconds for one image on this machine; None: not measured.
      accuracy: None: not known.
    """

    name: str
    image_shape: tuple[int, int, int]
    parameters: int
    multiply_adds: int
    file_bytes: int
    latency: float | None = None
    accuracy: Accuracy | None = None


def summarize(
    name: str,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    variables: Mapping[str, Any] | None = None,
    accuracy: Accuracy | None = None,
    with_latency: bool = True,
) -> Summary:
    """Counts a network's parameters and operations and, by default, measures its latency (see `latency`).

    Args:
      image_shape: (height, width, channels).
      variables: for the latency; None: random ones.
    """
    total, *_ = trace_layers(model, image_shape)
    size = 4 * (total.parameters + total.statistics)
    seconds = latency(model, image_shape, variables) if with_latency else None
    return Summary(name, image_shape, total.parameters, total.multiply_adds, size, seconds, accuracy)


def comparison(summaries: Sequence[Summary], style: str = "text") -> str:
    """A table with one row per network; "csv" has exact numbers."""
    exact = style == "csv"
    header = ["network", "image", "parameters", "multiply-adds", "file", "latency", "top-1"]
    if exact:
        header = ["network", "image", "parameters", "multiply_adds", "file_bytes", "latency_seconds", "top1"]
    rows = []
    for each in summaries:
        top1 = each.accuracy and each.accuracy.top1
        if exact:
            numbers = [each.parameters, each.multiply_adds, each.file_bytes]
            cells = [*map(str, numbers), *("" if x is None else f"{x:.6g}" for x in (each.latency, top1))]
        else:
            cells = [human(each.parameters), human(each.multiply_adds), f"{human(each.file_bytes)}B"]
            cells.append("" if each.latency is None else f"{1000 * each.latency:.3g} ms")
            cells.append("" if top1 is None else f"{top1:.1%}")
        rows.append([each.name, times(each.image_shape), *cells])
    return format_table(header, rows, style)


def sources(summaries: Sequence[Summary]) -> str:
    """The sources of the accuracies, one per line."""
    names: dict[Accuracy, list[str]] = {}
    for each in summaries:
        if each.accuracy:
            names.setdefault(each.accuracy._replace(top1=0), []).append(each.name)
    return "\n".join(f"top-1 on {key.data} of {', '.join(group)}: {key.source}" for key, group in names.items())


@drawing.style()
def bubble_chart(summaries: Sequence[Summary]) -> Figure:
    """Plots accuracy against multiply-adds; bubble areas show parameters (after Canziani et al. 2016, figure 2).

    Networks of the same family have the same color. Networks without a known accuracy are left out.

    Raises:
      UserError: no network's accuracy is known, or they were measured on different data sets.
    """
    known = [(each, each.accuracy) for each in summaries if each.accuracy]
    data = sorted({accuracy.data for _, accuracy in known})
    if len(data) != 1:
        among = ", ".join(each.name for each in summaries)
        reason = f"they were measured on {' and '.join(data)}" if data else "none has a known accuracy"
        raise UserError(f"no chart of {among}: {reason}")
    figure, axes = drawing.new_figure(8, 5.5, dpi=150)
    x = [each.multiply_adds / 1e9 for each, _ in known]
    y = [100 * accuracy.top1 for _, accuracy in known]
    largest = max(each.parameters for each, _ in known)
    areas = [_area(each.parameters, largest) for each, _ in known]
    colors = [drawing.family_color(each.name) for each, _ in known]
    order = sorted(range(len(known)), key=lambda index: -areas[index])  # small bubbles in front of large ones
    for index in order:
        axes.scatter(x[index], y[index], areas[index], color=colors[index], alpha=0.55, edgecolor="white", zorder=2)
    axes.set_xlim(-0.05 * max(x), 1.12 * max(x))  # room for names
    spread = max(max(y) - min(y), 1.0)
    axes.set_ylim(min(y) - 0.15 * spread, max(y) + 0.15 * spread)
    axes.set_xlabel("multiply-adds for one image, billions")
    axes.set_ylabel(f"top-1 accuracy on {chart_label(data[0])}, %")
    unit = 10 ** math.floor(math.log10(largest))
    sizes = (unit / 4, unit)
    legend = [axes.scatter([], [], _area(size, largest), color=drawing.color("gray"), alpha=0.55) for size in sizes]
    axes.legend(
        legend,
        [f"{size / 1e6:g} million parameters" for size in sizes],
        loc="lower right",
        labelspacing=2,
        borderpad=1.5,
        handletextpad=1.5,
        fontsize=8.5,
        frameon=False,
    )
    _label(axes, [each.name for each, _ in known], x, y, areas, colors)
    return figure


def save_chart(summaries: Sequence[Summary], path: str | Path) -> None:
    """Saves the bubble chart as an image file whose format is given by the suffix.

    Raises:
      UserError: Matplotlib does not support the suffix, or no chart can be drawn (see `bubble_chart`).
      WriteError: the file cannot be written.
    """
    path, figure = files.expand(path), bubble_chart(summaries)
    try:
        drawing.save_figure(figure, path if path.suffix else path.with_name(f"{path.name}.png"))
    except WriteError as error:
        raise WriteError(f"cannot write the chart {path}: {error}") from error.__cause__
    except ValueError as error:  # the suffix
        raise UserError(f"cannot write the chart {path}: {error}") from error


def _area(parameters: float, largest: float) -> float:
    return 1600 * parameters / largest  # points squared


def _label(
    axes: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], areas: Sequence[float], colors: Sequence
) -> None:
    """Writes each name next to its bubble, if possible where it covers nothing and no other bubble is nearer."""
    figure: Any = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # fixes the position of the axes
    points = figure.dpi / 72  # pixels per point
    centers = axes.transData.transform(list(zip(x, y, strict=True)))
    radii = [math.sqrt(area / math.pi) * points for area in areas]
    taken = [Bbox([center - r, center + r]) for center, r in zip(centers, radii, strict=True)]
    taken += [child.get_window_extent(renderer) for child in axes.get_children() if isinstance(child, Legend)]
    frame = axes.get_window_extent(renderer)
    for index in sorted(range(len(names)), key=lambda index: areas[index]):
        text = axes.annotate(
            chart_label(names[index]), (x[index], y[index]), (0, 0), textcoords="offset points", fontsize=8.5,
            va="center", ha="center", color="0.15", zorder=3,
        )  # fmt: skip
        width, height = text.get_window_extent(renderer).size
        candidates = []
        for distance in (1.0, 8.0, 16.0, 28.0):  # points between the bubble and its name
            away = radii[index] + distance * points
            for angle in np.linspace(0, 2 * math.pi, 24, endpoint=False):
                offset = np.array([math.cos(angle) * (away + width / 2), math.sin(angle) * (away + height / 2)])
                left, bottom = centers[index] + offset - (width / 2, height / 2)
                box = Bbox.from_bounds(left, bottom, width, height)
                hidden = sum(_overlap(box, other) for other in taken)
                outside = width * height - _overlap(box, frame)
                gaps = [_gap(box, center) - radius for center, radius in zip(centers, radii, strict=True)]
                ambiguous = width * height * (min(gaps) < gaps[index])  # nearer to another's bubble
                cost = round(hidden + ambiguous + 10 * outside)
                candidates.append((cost, distance, len(candidates), offset, box))
        _, distance, _, offset, box = min(candidates, key=lambda candidate: candidate[:3])
        text.xyann = tuple(offset / points)
        taken.append(box)
        if distance > 8:
            end = np.clip(centers[index], box.min, box.max)  # end of a line to the nearest point of the name
            axes.annotate(
                "", (x[index], y[index]), tuple((end - centers[index]) / points), textcoords="offset points", zorder=1,
                arrowprops={"arrowstyle": "-", "color": colors[index], "lw": 0.7},
            )  # fmt: skip


def _gap(box: Bbox, point: Any) -> float:
    return float(np.linalg.norm(np.clip(point, box.min, box.max) - point))


def _overlap(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return both.width * both.height if both is not None else 0.0
