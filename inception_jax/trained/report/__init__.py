"""Reports: one or several runs on a single page with embedded pictures, readable offline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax import files
from inception_jax.errors import UserError
from inception_jax.runs.records import Record, read_record, read_records
from inception_jax.trained.report import sections, tables
from inception_jax.trained.report.page import Page, Section, Text

if TYPE_CHECKING:
    from inception_jax.trained.report.findings import Findings


def write_report(
    run_folders: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    style: str = "html",
    findings: Mapping[str | Path, "Findings | UserError"] | None = None,
) -> Path:
    """Writes the report of a run, or of several side by side, from config.json, metrics.csv and summary.json.

    Args:
      output: an HTML file or, with style="markdown", a folder; None: see `default_output`.
      style: "html" or "markdown".
      findings: each network's findings on its data by run folder, see `findings.examine`; or why there are none.

    Returns:
      the page's path.

    Raises:
      UserError: a folder does not contain a run, the page cannot be written, or a run's file is damaged; of several
        runs, a damaged one is left out with a warning.
    """
    folders = [run_folders] if isinstance(run_folders, str | Path) else list(run_folders)
    found = {Path(folder): what for folder, what in (findings or {}).items()}
    if len(folders) == 1:
        page = run_page(read_record(folders[0]), found.get(Path(folders[0])))
    else:
        runs = read_records(folders)
        page = comparison_page(runs, [found.get(record.folder) for record in runs])
    place = default_output(folders, style) if output is None else files.expand(output, "the report's path")
    return page.write(place, style)


def default_output(run_folders: Sequence[str | Path], style: str = "html") -> Path:
    """report.html or, for Markdown, a folder `report`: in the run's folder or, for several runs, the current one."""
    parent = files.expand(run_folders[0]) if len(run_folders) == 1 else Path()
    return parent / ("report.html" if style == "html" else "report")


def run_page(record: Record, findings: "Findings | UserError | None" = None) -> Page:
    """A page on one run; `findings` add what needs its network and data."""
    notes = [*_unfinished(record, "This run"), *tables.config_notes(record.config)]
    examined = []
    if isinstance(findings, UserError):
        notes.append(f"Classes, mistakes and Grad-CAM are skipped: {findings}.")
    elif findings is not None:
        examined = sections.examined(findings)
    return Page(
        record.name,
        notes,
        [
            sections.results(record),
            sections.curves(record),
            *examined,
            sections.facts(record),
            sections.versions(record),
            sections.config(record),
        ],
        tables.headline(record),
        tables.origin(record),
        (record.summary or {}).get("command", ""),
    )


def comparison_page(runs: Sequence[Record], findings: Sequence["Findings | UserError | None"] | None = None) -> Page:
    """A page on several runs side by side."""
    notes, examined = [], {}
    for record, found in zip(runs, findings or [None] * len(runs), strict=True):
        own = tables.config_notes(record.config)
        notes += [*_unfinished(record, record.name), *(f"{record.name}: {note}" for note in own)]
        if isinstance(found, UserError):
            notes.append(f"{record.name} is not in the table of classes: {found}.")
        elif found is not None:
            examined[record.name] = found
    differences = tables.config_differences(runs)
    return Page(
        f"{len(runs)} runs compared",
        notes,
        [
            Section("Results", [tables.results_of_runs(runs)]),
            Section("Differences", [differences if differences.rows else Text("The configs are the same.")]),
            sections.curves_of_runs(runs),
            *([sections.classes_of_runs(examined)] if examined else []),
            Section("Time and size", [tables.facts_of_runs(runs)]),
            *sections.details_of_runs(examined),
        ],
    )


def _unfinished(record: Record, name: str) -> list[str]:
    if record.summary:
        return []
    rows, epochs = record.rows, record.config.get("num_epochs")
    done = f": {rows[-1]['epoch']:g} of {epochs} epochs evaluated" if rows else ""
    return [f"{name} has not finished{done}. The same command continues."]
