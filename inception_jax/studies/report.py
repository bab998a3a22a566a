"""Writes a study's report as HTML and LaTeX: published numbers next to ours, curves, and verdicts on claims."""

import base64
import dataclasses
import io
import itertools
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inception_jax import files
from inception_jax.inspection.figures import save_figure
from inception_jax.studies.results import Estimate, Result, Table, Verdict
from inception_jax.text import chart_label, printable_lines
from inception_jax.trained import pages

# Okabe and Ito's color-blind-safe palette, without its yellow and black.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
STYLES = ("-", "--", ":", "-.")
GREY = "#80858e"  # axes and text; equally readable on white and on black
SHARES = ("top1", "top5", "error")
WORDS = {
    "top1": "top-1", "top5": "top-5", "error": "top-1 error", "loss": "loss", "training_minutes": "training, minutes",
    "minutes": "minutes", "images_per_second": "images/s", "multiply_adds": "multiply-adds", "learning_rate": "rate",
}  # fmt: skip
SELECTED_ON_TEST = "†"
STEEP = 20  # ratio of a loss's highest to its lowest value above which its axis is logarithmic
PDF: dict[str, Any] = {"transparent": True, "metadata": {"CreationDate": None}}  # the same bytes every time
SMALLER_BY = {"parameters": 1e6, "multiply_adds": 1e6}  # shown in millions


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the table of results, as text."""

    name: str
    note: str
    cells: Sequence[str]  # one per column
    size: str
    state: str
    command: str


def write_report(table: Table, failures: Mapping[Path, str] | None = None) -> Path:
    """Writes report.html, report.tex with its figures, and results.json into the plan's folder; returns the page."""
    plan = table.plan
    folder = plan.folder
    watched = _watched_test(table)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from error
    pictures = []
    for column in plan.study.curves:
        curves = _curves(table, column)
        if curves:
            figure = _draw_curves(curves, column)
            save_figure(figure, folder / "figures" / f"{column}.pdf", **PDF)
            pictures.append((column, _described(curves, column), figure))
    norms = _gradient_norms(table)
    if norms:
        figure = _draw_norms(norms)
        save_figure(figure, folder / "figures" / "gradient_norms.pdf", **PDF)
        words = (
            "The gradient's norm in each layer, before and after training: the median over the seeds, and their range"
        )
        pictures.append(("gradient_norms", words, figure))
    content: dict[str, Any] = {
        "study": plan.study,
        "form": plan.form,
        "form_name": plan.form_name,
        "heads": [_label(measure, watched) + (", published" if kind else "") for measure, kind in _columns(table)],
        "watched_test": watched,
        "selected_on_test": any(SELECTED_ON_TEST in _label(measure, watched) for measure in plan.study.measures),
        "rows": [_row(table, name) for name in table.results],
        "verdicts": [_verdict_words(verdict, watched) for verdict in table.verdicts()],
        "smoke": table.smoke,
        "hardware": _hardware(table),
        "versions": _versions(table),
        "failures": {path.relative_to(folder): text for path, text in (failures or {}).items()},
        "complete": sum(
            result.state == "complete"
            for name, results in table.results.items()
            for result in results
            if name not in plan.study.pairs
        ),
        "runs": len(plan.runs),
    }
    environment = pages.environment(autoescape=lambda name: name == "study.html")
    environment.filters |= {"tex": _tex, "tex_command": _tex_command}
    shown = [{"title": _label(name), "alt": alt, "source": _data_uri(figure)} for name, alt, figure in pictures]
    page = folder / "report.html"
    files.write_text(page, environment.get_template("study.html").render(pictures=shown, **content))
    drawings = [(name, alt, f"figures/{name}.pdf") for name, alt, _ in pictures]
    tex = environment.get_template("study.tex").render(pictures=drawings, **content)
    files.write_text(folder / "report.tex", tex)
    files.write_json(folder / "results.json", as_json(table))
    return page


def as_json(table: Table) -> dict[str, Any]:
    """The numbers in the report: every measure of every run, and the verdicts."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    study = table.plan.study
    return {
        "form": table.plan.form_name,
        "results": {
            name: [
                {
                    "seed": result.planned.seed,
                    "state": result.state,
                    **{measure: finite(result.measure(measure)) for measure in study.measures},
                }
                for result in results
            ]
            for name, results in table.results.items()
        },
        "smoke": dict(table.smoke),
        "claims": [
            {
                "text": verdict.claim.text,
                "measure": verdict.claim.measure,
                "verdict": verdict.verdict,
                "why": verdict.why,
                "mean": finite(verdict.estimate.mean),
                "interval": [finite(verdict.estimate.low), finite(verdict.estimate.high)],
                "smallest_difference": finite(verdict.estimate.half_width),
                "values": list(verdict.estimate.values),
            }
            for verdict in table.verdicts()
        ],
    }


def _columns(table: Table) -> list[tuple[str, bool]]:
    """(measure, whether it is the published one); published columns exist if some row has a number."""
    study = table.plan.study
    rows = [study.pairs.get(name) or table.plan.variations[name] for name in table.results]
    known = {measure for row in rows for measure in row.published}
    return [(measure, kind) for measure in study.measures for kind in (True, False) if not kind or measure in known]


def _row(table: Table, name: str) -> TableRow:
    study, results = table.plan.study, table.results[name]
    variation = study.pairs.get(name) or table.plan.variations[name]
    done = [result for result in results if result.state == "complete"]
    cells = []
    for measure, is_published in _columns(table):
        published, estimate = variation.published.get(measure), table.estimate(name, measure)
        if is_published:
            cells.append("" if published is None else show(measure, published))
        else:
            cells.append(_mean(measure, estimate) if estimate.values else "")
    size = ""
    if done and name not in study.pairs:
        epochs = statistics.fmean(result.measure("epochs") for result in done)
        size = f"{done[0].images:,} images, {epochs:.3g} epochs"
    command = "" if name in study.pairs else results[0].planned.shown()  # a pair's networks have their own commands
    return TableRow(name, variation.note, cells, size, _state(results, table.smoke.get(name, "")), command)


def _state(results: Sequence[Result], smoke: str) -> str:
    done = sum(result.state == "complete" for result in results)
    if done < len(results):
        return f"{done} of {len(results)} runs complete"
    return f"smoke run: {smoke}" if smoke else f"{done} seed{'s' if done > 1 else ''}"


def _kind(measure: str) -> str:
    """The kind of a measure: its last word, or the whole name."""
    if measure.startswith(("epoch", "epochs")):
        return "epochs"
    what = measure.partition("_at_")[0]
    return next((word for word in WORDS if what == word or what.endswith((f"_{word}", f".{word}"))), what)


def show(measure: str, value: float) -> str:
    """Formats a value of a measure in its unit: shares in percent."""
    kind = _kind(measure)
    if kind in SHARES:
        return f"{100 * value:.2f} %"
    if kind in SMALLER_BY:
        return f"{value / SMALLER_BY[kind]:,.2f} M"
    return f"{value:.4g}"


def _difference(measure: str, value: float) -> str:
    """Like `show`, for a difference: in percentage points if the measure is a share."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:+.2f} points" if _kind(measure) in SHARES else f"{value:+.4g}"


def _mean(measure: str, estimate: Estimate) -> str:
    if len(set(estimate.values)) == 1:
        return show(measure, estimate.mean)
    if _kind(measure) in SHARES:
        return f"{100 * estimate.mean:.2f} ± {100 * estimate.deviation:.2f} %"
    scale = SMALLER_BY.get(_kind(measure), 1)
    unit = " M" if scale > 1 else ""
    return f"{estimate.mean / scale:.4g} ± {estimate.deviation / scale:.2g}{unit}"


def _watched_test(table: Table) -> bool:
    """Whether some run selected its best weights on test data."""
    watched = (result.summary.get("watched") for results in table.results.values() for result in results)
    return any((metric or "").startswith("test_") for metric in watched)


def _label(measure: str, watched_test: bool = False) -> str:
    """A measure's name in words."""
    if found := re.fullmatch(r"(best|final)_([^_]+)_(\w+)", measure):
        best = f"best by test data{SELECTED_ON_TEST}" if watched_test else "best by validation"
        return f"{_label(f'{found[2]}_{found[3]}')}, {best if found[1] == 'best' else 'last weights'}"
    if found := re.fullmatch(r"(\w+)_at_epoch_(\d+)", measure):
        return f"{_label(found[1])} after epoch {found[2]}"
    if found := re.fullmatch(r"(\w+)_at_((?:highest|lowest)_\w+)", measure):
        return f"{_label(found[1])} at the {_label(found[2])}"
    if found := re.fullmatch(r"(epoch_of_)?(highest|lowest)_([a-z]+)_(\w+)", measure):
        mark = SELECTED_ON_TEST if found[3] == "test" else ""
        what = f"{found[2]} {found[3]} {WORDS.get(found[4], found[4])}{mark}"
        return f"epoch of the {what}" if found[1] else what
    if found := re.fullmatch(r"epochs_to_([\d.]+)_([a-z]+)_(\w+)", measure):
        return f"epochs to {100 * float(found[1]):g} % {found[2]} {WORDS.get(found[3], found[3])}"
    if found := re.fullmatch(r"(\w+)\.(\w+)", measure):  # for a subset of the pictures
        return f"{found[1]} pictures, {WORDS.get(found[2], found[2])}"
    name, _, kind = measure.rpartition("_")
    if name and kind in WORDS and measure not in WORDS:
        return f"{name.replace('_', ' ')} {WORDS[kind]}"
    return WORDS.get(measure, measure.replace("_", " "))


def _verdict_words(verdict: Verdict, watched_test: bool) -> dict[str, str]:
    claim, estimate = verdict.claim, verdict.estimate
    between = claim.expected == "between"

    def words(value: float) -> str:
        if not math.isfinite(value):
            return "-"
        return show(claim.measure, value) if between else _difference(claim.measure, value)

    return {
        "text": claim.text,
        "compared": f"{_label(claim.measure, watched_test)}: {claim.first}" + f" less {claim.second}" * (not between),
        "mean": words(estimate.mean),
        "interval": f"{words(estimate.low)} to {words(estimate.high)}" if math.isfinite(estimate.low) else "-",
        "smallest": _difference(claim.measure, estimate.half_width).lstrip("+"),
        "seeds": str(len(estimate.values)),
        "verdict": "no verdict" if verdict.verdict == "none" else verdict.verdict,
        "why": verdict.why,
    }


Curve = tuple[list[float], list[float], list[float], list[float]]  # epochs, means, lowest, highest over seeds


def _curves(table: Table, column: str) -> dict[str, Curve]:
    """Curves by variation, over the epochs that all its seeds have."""
    curves = {}
    for name, results in table.results.items():
        if name in table.plan.study.pairs:
            continue
        seeds = [{row["epoch"]: row[column] for row in result.rows if column in row} for result in results]
        seeds = [points for points in seeds if points]
        epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
        if epochs:
            values = [[points[epoch] for points in seeds] for epoch in epochs]
            curves[name] = (epochs, [*map(statistics.fmean, values)], [*map(min, values)], [*map(max, values)])
    return curves


def _described(curves: Mapping[str, Curve], column: str) -> str:
    ends = (f"{name} ends at {show(column, means[-1])}" for name, (_, means, _, _) in curves.items())
    axis = ", on a logarithmic axis" if _is_steep(curves, column) else ""
    return f"{_label(column)} over the epochs{axis}: {'; '.join(ends)}"


def _is_steep(curves: Mapping[str, Curve], column: str) -> bool:
    """Whether a loss falls so far, as after an unstable first epoch, that the rest would look flat."""
    losses = [loss for _, _, *bounds in curves.values() for bound in bounds for loss in bound]
    return _kind(column) == "loss" and 0 < STEEP * min(losses) < max(losses)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")  # inches
    axes = figure.add_subplot()
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styled(function):
    """Draws in colors that are readable on white and on black, with the same bytes for the same numbers."""
    style: dict[Any, Any] = {"svg.hashsalt": "inception_jax", "font.size": 10} | dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), GREY
    )

    def draw(*args):
        with matplotlib.rc_context(style):
            return function(*args)

    return draw


def _looks(number: int) -> list[dict[str, str]]:
    every = itertools.product(STYLES, COLOURS)
    return [{"linestyle": style, "color": colour} for style, colour in itertools.islice(itertools.cycle(every), number)]


@_styled
def _draw_curves(curves: Mapping[str, Curve], column: str) -> Figure:
    figure, axes = _figure()
    scale = 100 if _kind(column) in SHARES else 1
    for (name, (epochs, means, low, high)), look in zip(curves.items(), _looks(len(curves)), strict=True):
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, [scale * value for value in means], label=chart_label(name), marker=marker, **look)
        if low != high:
            bounds = ([scale * value for value in values] for values in (low, high))
            axes.fill_between(epochs, *bounds, color=look["color"], alpha=0.15, lw=0)
    if _is_steep(curves, column):
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(_label(column) + (", %" if scale == 100 else ""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _legend(axes, len(curves))
    return figure


def _legend(axes: Any, number: int) -> None:
    if number > 6:
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.legend(frameon=False, fontsize=8)


def _gradient_norms(table: Table) -> dict[str, dict[str, list[float]]]:
    """Gradient norms by variation and time (start or end), then by layer, as lists over the complete seeds."""
    norms: dict[str, dict[str, list[float]]] = {}
    for name, results in table.results.items():
        for result in results:
            for when, by_layer in result.extras.get("gradient_norms", {}).items():
                layers = norms.setdefault(f"{name}, {when}", {})
                for layer, norm in by_layer.items():
                    layers.setdefault(layer, []).append(norm)
    return norms


@_styled
def _draw_norms(norms: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure, axes = _figure()
    layers = list(dict.fromkeys(layer for by_layer in norms.values() for layer in by_layer))
    for (name, by_layer), look in zip(norms.items(), _looks(len(norms)), strict=True):
        seeds = [by_layer.get(layer, [math.nan]) for layer in layers]
        axes.plot(layers, [*map(statistics.median, seeds)], label=chart_label(name), marker=".", **look)
        axes.fill_between(layers, [*map(min, seeds)], [*map(max, seeds)], color=look["color"], alpha=0.15, lw=0)
    axes.set_yscale("log")
    axes.set_ylabel("norm of the gradient")
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    _legend(axes, len(norms))
    return figure


def _data_uri(figure: Figure) -> str:
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "inception_jax"}):
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()


def _hardware(table: Table) -> list[str]:
    found = (result.summary.get("device") for results in table.results.values() for result in results)
    return sorted(set(filter(None, found)))


def _versions(table: Table) -> dict[str, str]:
    """Versions of the software that the runs used, joined if they differ."""
    found: dict[str, set[str]] = {}
    for results in table.results.values():
        for result in results:
            for name, version in result.summary.get("versions", {}).items():
                found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"\dag{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _tex(text: Any) -> str:
    """Escapes text for LaTeX."""
    # Two hyphens would become a dash, even in typewriter font.
    return re.sub(r"-(?=-)", "-{}", "".join(_TEX.get(character, character) for character in printable_lines(str(text))))


def _tex_command(text: Any) -> str:
    """Like `_tex`, with straight quotes as in the shell."""
    return _tex(text).replace("'", r"\textquotesingle{}")
