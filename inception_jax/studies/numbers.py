"""The numbers of a study as JSON: beside its report, and as a small file to keep in a repository."""

import math
import shlex
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.config.fields import FIELDS
from inception_jax.errors import UserError
from inception_jax.runs.records import ended
from inception_jax.studies.definitions import Pair, Variation
from inception_jax.studies.results import Result, StudyResults, Verdict

# Fields that say where data is on one machine.
PLACES = tuple(field.name for field in FIELDS if field.source and field.may_differ)


def as_json(table: StudyResults) -> dict[str, Any]:
    """The numbers in the report: every measure of every run, and the verdicts."""
    plan = table.plan
    return {
        "study": plan.name,
        "form": plan.form_name,
        "title": plan.study.title,
        "source": plan.study.source,
        "note": plan.form.note,
        "measures": list(plan.study.measures),
        "published": {name: dict(row_of(table, name).published) for name in table.results},
        "notes": {name: notes_of(row_of(table, name)) for name in table.results},
        "results": {name: [_run(table, result) for result in results] for name, results in table.results.items()},
        "smoke": dict(table.smoke),
        "claims": [_claim(verdict) for verdict in table.verdicts()],
        "watched_test": watched_test(table),
        "hardware": hardware(table),
        "versions": versions(table),
    }


def publish(table: StudyResults, folder: Path, options: str = "") -> Path:
    """Writes a study's numbers to FOLDER/STUDY-FORM.json; returns the file.

    Rows of which no run is complete are left out, and so are the claims about them.

    Args:
      options: with which the study is run, as on the command line; where data is on this machine is left out.

    Raises:
      UserError: no run is complete.
      WriteError: the file cannot be written.
    """
    content = as_json(table)
    done = [result for results in table.results.values() for result in results if result.state == "complete"]
    if not done:
        raise UserError(f"{table.plan.folder} has no complete run: there is nothing to publish")
    kept = {name for name, runs in content["results"].items() if any(run["state"] == "complete" for run in runs)}
    for part in ("published", "notes", "results", "smoke"):
        content[part] = {name: value for name, value in content[part].items() if name in kept}
    content["claims"] = [claim for claim in content["claims"] if kept.issuperset(claim["variations"])]
    words = ["inception-jax", "study", content["study"], "--form", content["form"]]
    content["command"] = shlex.join([*words, *_without_places(options)])
    content["date"] = max(filter(None, (ended(result.planned.folder) for result in done))).date().isoformat()
    path = folder / f"{content['study']}-{content['form']}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from error
    files.write_json(path, content)
    return path


def row_of(table: StudyResults, name: str) -> Variation | Pair:
    """The definition of a row of the results."""
    return table.plan.study.pairs.get(name) or table.plan.variations[name]


def notes_of(row: Variation | Pair) -> str:
    """What a table says of a row: its note, and its own source."""
    source = f"published: {row.source}" if isinstance(row, Variation) and row.source else ""
    return "; ".join(filter(None, (row.note, source)))


def watched_test(table: StudyResults) -> bool:
    """Whether some run selected its best weights on test data."""
    watched = (result.summary.get("watched") for results in table.results.values() for result in results)
    return any((metric or "").startswith("test_") for metric in watched)


def hardware(table: StudyResults) -> list[str]:
    """The devices that the runs were trained on."""
    found = (result.summary.get("device") for results in table.results.values() for result in results)
    return sorted(set(filter(None, found)))


def versions(table: StudyResults) -> dict[str, str]:
    """Versions of the software that the runs used, joined if they differ."""
    found: dict[str, set[str]] = {}
    for results in table.results.values():
        for result in results:
            for name, version in result.summary.get("versions", {}).items():
                found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _run(table: StudyResults, result: Result) -> dict[str, Any]:
    measures = {measure: _finite(result.measure(measure)) for measure in table.plan.study.measures}
    size = {"images": result.images, "epochs": _finite(result.measure("epochs"))}
    return {"seed": result.planned.seed, "state": result.state, **size, **measures}


def _claim(verdict: Verdict) -> dict[str, Any]:
    claim, estimate = verdict.claim, verdict.estimate
    return {
        "text": claim.text,
        "measure": claim.measure,
        "variations": list(claim.variations),
        "expected": claim.expected,
        "verdict": verdict.verdict,
        "why": verdict.why,
        "mean": _finite(estimate.mean),
        "interval": [_finite(estimate.low), _finite(estimate.high)],
        "smallest_difference": _finite(estimate.half_width),
        "values": list(estimate.values),
    }


def _without_places(options: str) -> list[str]:
    return [
        word
        for word in shlex.split(options)
        if not word.lstrip("-").startswith(tuple(f"config.{name}=" for name in PLACES))
    ]
