"""What training shows in a notebook: a bar, the latest epochs and the curves, updated in place."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from inception_jax.inspection import drawing
from inception_jax.text import columns, html_table

SPLITS = {"train": "blue", "validation": "orange", "test": "green"}  # with the hues of their curves
METRICS = {"loss": "loss", "top1": "top-1 accuracy"}
EPOCHS_SHOWN = 5  # in the table; the curves have all of them
CURVES_SECONDS = 1.0  # between two drawings, which take about 0.2 s
FEW = 12  # epochs that are dots on the curves
SIZE = (7.2, 2.5)  # of the curves, inches
WIDTH = 720  # of the curves on the page, pixels


class Bar(tqdm):
    """tqdm's bar as an output of its own, which needs no ipywidgets; below it the latest epochs, and their curves."""

    def __init__(self, **options: Any):
        self._rows: list[Mapping[str, float]] = []
        self._metrics: Sequence[str] = ()
        self._shown = None
        self._drawn_rows, self._drawn_at = 0, -CURVES_SECONDS
        super().__init__(gui=True, **options)  # gui: it writes to no stream
        self.refresh()
        self._curves = _show(None, {"text/plain": ""})  # their place, above log messages

    def epoch(self, row: Mapping[str, float], metrics: Sequence[str]) -> None:
        """Adds an evaluated epoch to the table, with these metrics, and, if it is time for that, to the curves."""
        self._rows.append(row)
        self._metrics = metrics
        if time.monotonic() - self._drawn_at >= CURVES_SECONDS:
            self._draw()

    def display(self, *_: Any, **__: Any) -> None:
        """Shows the current state; tqdm calls it whenever something has changed."""
        values, parts = self.format_dict, [self.desc, self.postfix]
        header, cells = _table(self._rows[-EPOCHS_SHOWN:], self._metrics)
        bar = f'<progress value="{self.n}" max="{self.total}" style="width: 16em"></progress>'
        html = f'<div style="margin: 4px 0">{bar} &ensp;{" &ensp; ".join(filter(None, parts))}</div>'
        text = [self.format_meter(**values), *(columns([header, *cells], 0) if cells else ())]
        bundle = {"text/plain": "\n".join(text), "text/html": html + (html_table(header, cells) if cells else "")}
        self._shown = _show(self._shown, bundle)

    def close(self) -> None:
        """Shows the end as it will stay in the notebook: all of the curves, and no time left."""
        if self._drawn_rows < len(self._rows):
            self._draw()
        if self.n >= self.total:
            self.set_postfix_str("")
        super().close()

    def _draw(self) -> None:
        picture = {"image/png": drawing.png(draw_curves(self._rows)), "text/plain": "curves of training"}
        _show(self._curves, picture, {"image/png": {"width": WIDTH}})
        self._drawn_rows, self._drawn_at = len(self._rows), time.monotonic()


def _show(handle: Any, bundle: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Any:
    """Shows content by MIME type, in place of what the handle has shown; returns the handle, a new one for None."""
    from IPython.display import display  # it is there, since this is a notebook

    if handle is None:
        return display(dict(bundle), raw=True, display_id=True, metadata=metadata)
    handle.update(dict(bundle), raw=True, metadata=metadata)
    return handle


def _table(rows: list[Mapping[str, float]], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Epoch, metrics of the splits, and the learning rate: column names, and cells."""
    names = [f"{split}_{metric}" for split in SPLITS for metric in metrics]
    names = [name for name in names if any(name in row for row in rows)]
    cells = [
        [f"{row['epoch']:g}", *(f"{row[name]:.4f}" for name in names), f"{row['learning_rate']:.3g}"] for row in rows
    ]
    return ["epoch", *(name.replace("_", " ") for name in names), "learning rate"], cells


@drawing.style()
def draw_curves(rows: list[Mapping[str, float]]) -> Figure:
    """Loss and accuracy of the splits over the epochs, side by side.

    Args:
      rows: the metrics of each evaluated epoch, as in metrics.csv.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        drawing.add_grid(axes)
        for split, hue in SPLITS.items():
            if points := [(row["epoch"], row[name]) for row in rows if (name := f"{split}_{metric}") in row]:
                marker = "o" if len(points) <= FEW else None
                axes.plot(*zip(*points, strict=True), color=drawing.color(hue), label=split, marker=marker)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize="medium")
        axes.legend(frameon=False)
    return figure
