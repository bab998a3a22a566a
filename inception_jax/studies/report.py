"""Writes a study's report as HTML and LaTeX: published numbers next to ours, curves, and verdicts on claims."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.inspection import drawing
from inception_jax.studies import numbers
from inception_jax.studies.charts import charts
from inception_jax.studies.definitions import Claim
from inception_jax.studies.latex import tex, tex_command
from inception_jax.studies.results import Result, StudyResults, Verdict
from inception_jax.studies.wording import SELECTED_ON_TEST, compared, difference, label, mean, show, size
from inception_jax.trained import pages


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the table of results, as text."""

    name: str
    note: str
    cells: Sequence[str]  # one per column
    size: str
    state: str
    command: str


def write_report(table: StudyResults, failures: Mapping[Path, str] | None = None) -> Path:
    """Writes report.html, report.tex with its figures, and results.json into the plan's folder; returns the page."""
    folder = table.plan.folder
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from error
    drawn = charts(table)
    for chart in drawn:
        drawing.save_figure(chart.lines.draw(), folder / "figures" / f"{chart.name}.pdf", transparent=True)
    environment = pages.environment(autoescape=lambda name: name != "study.tex")
    environment.filters |= {"tex": tex, "tex_command": tex_command}
    content = _content(table, failures or {})
    page = folder / "report.html"
    files.write_text(page, environment.get_template("study.html").render(charts=drawn, **content))
    drawings = [(chart.words, f"figures/{chart.name}.pdf") for chart in drawn]
    text = environment.get_template("study.tex").render(pictures=drawings, **content)
    files.write_text(folder / "report.tex", text)
    files.write_json(folder / "results.json", numbers.as_json(table))
    return page


def _content(table: StudyResults, failures: Mapping[Path, str]) -> dict[str, Any]:
    """What both templates show."""
    plan, watched = table.plan, numbers.watched_test(table)
    return {
        "study": plan.study,
        "form": plan.form,
        "form_name": plan.form_name,
        "heads": ["published" if published else label(measure, watched) for measure, published in _columns(table)],
        "watched_test": watched,
        "selected_on_test": any(SELECTED_ON_TEST in label(measure, watched) for measure in plan.study.measures),
        "rows": [_row(table, name) for name in table.results],
        "verdicts": [_verdict_words(verdict, watched) for verdict in table.verdicts()],
        "smoke": table.smoke,
        "hardware": numbers.hardware(table),
        "versions": numbers.versions(table),
        "failures": {path.relative_to(plan.folder): text for path, text in failures.items()},
        "complete": sum(
            result.state == "complete"
            for name, results in table.results.items()
            for result in results
            if name not in plan.study.pairs
        ),
        "runs": len(plan.runs),
    }


def _columns(table: StudyResults) -> list[tuple[str, bool]]:
    """(measure, whether it is the published one), ours first; published columns exist if some row has a number."""
    study = table.plan.study
    rows = [numbers.row_of(table, name) for name in table.results]
    known = {measure for row in rows for measure in row.published}
    return [(measure, kind) for measure in study.measures for kind in (False, True) if not kind or measure in known]


def _row(table: StudyResults, name: str) -> TableRow:
    study, results = table.plan.study, table.results[name]
    variation = numbers.row_of(table, name)
    done = [result for result in results if result.state == "complete"]
    cells = []
    for measure, is_published in _columns(table):
        published, estimate = variation.published.get(measure), table.estimate(name, measure)
        if is_published:
            cells.append("" if published is None else show(measure, published))
        else:
            cells.append(mean(measure, estimate) if estimate.values else "")
    trained = ""
    if done and name not in study.pairs:
        trained = size(done[0].images, statistics.fmean(result.measure("epochs") for result in done))
    command = "" if name in study.pairs else results[0].planned.shown()  # a pair's networks have their own commands
    return TableRow(name, variation.note, cells, trained, _state(results, table.smoke.get(name, "")), command)


def _state(results: Sequence[Result], smoke: str) -> str:
    done = sum(result.state == "complete" for result in results)
    if done < len(results):
        return f"{done} of {len(results)} runs complete"
    return f"smoke run: {smoke}" if smoke else f"{done} seed{'s' if done > 1 else ''}"


def _compared(claim: Claim) -> str:
    pair = f"{claim.first} minus {claim.second}" if claim.second else claim.first
    return f"{pair}, minus ({' minus '.join(claim.than)})" if claim.than else pair


def _verdict_words(verdict: Verdict, watched_test: bool) -> dict[str, str]:
    claim, estimate = verdict.claim, verdict.estimate
    average, low, high = (
        compared(claim.measure, value, claim.expected) for value in (estimate.mean, estimate.low, estimate.high)
    )
    return {
        "text": claim.text,
        "compared": f"{label(claim.measure, watched_test)}: {_compared(claim)}",
        "mean": average,
        "interval": f"{low} to {high}" if math.isfinite(estimate.low) else "-",
        "smallest": difference(claim.measure, estimate.half_width).lstrip("+"),
        "seeds": str(len(estimate.values)),
        "verdict": "no verdict" if verdict.verdict == "none" else verdict.verdict,
        "why": verdict.why,
    }
