"""`inception-jax runs`: all runs below a folder as one table."""

import argparse
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax.commands import flags
from inception_jax.errors import UserError, unknown_name
from inception_jax.process import log_to_stderr
from inception_jax.text import complain, csv_line, format_seconds, format_table, json_text, say, shortened
from inception_jax.text import width as text_width

if TYPE_CHECKING:
    from inception_jax.runs.records import Record

EXAMPLES = """\
examples:
  inception-jax runs runs
  inception-jax runs runs --sort=-test_top1
  inception-jax runs runs --columns run,schedule.learning_rate,best_value,test_top1 --csv
  inception-jax runs runs --json

A column is one of those shown by default, a config field (schedule.learning_rate), a number in summary.json
(best.test.top5, images_per_second) or the last value of a column in metrics.csv. test_top1 and validation_top1 are for
the last weights; best_value is the watched metric of the best weights.
"""
LONGEST = 20  # characters of a value where the terminal is too narrow for all
IMPORTANT = ("test_top1", "validation_top1", "status", "epochs", "network")  # more so than the fields that differ
COLUMNS = ("run", "status", "epochs", "data", "network", "best_value", "validation_top1", "test_top1", "time")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "runs",
        run,
        help="list all runs below a folder, with their differences and results",
        description="Lists all runs below a folder: status, the fields in which their configs differ, and results.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "folder", metavar="DIR", type=flags.path, nargs="?", default=Path("runs"), help="(default: runs)"
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", default="run", help="column to sort by; --sort=-COLUMN for the largest first"
    )
    parser.add_argument(
        "--columns", metavar="NAMES", help="comma-separated (default: the usual ones and the fields that differ)"
    )
    flags.add_json(parser, csv="print CSV")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each run."""
    from inception_jax.runs.records import differing_fields, list_runs

    with log_to_stderr():
        records = list_runs(args.folder)
    if not records:
        raise UserError(f"no runs found below {args.folder}")
    if args.columns:
        columns = [name.strip() for name in args.columns.split(",")]
    else:
        differing = [field for field in differing_fields(records) if not field.startswith(("data.name", "model.name"))]
        columns = [*COLUMNS[:5], *differing, *COLUMNS[5:]]
    known = [_values(record) for record in records]
    sort_by = args.sort.removeprefix("-")
    for name in [*columns, sort_by]:
        if not any(name in values for values in known):
            raise unknown_name("column", name, {name for values in known for name in values})
    rows = _sorted(known, sort_by, largest_first=args.sort.startswith("-"))
    if args.json:
        say(json_text([{name: row.get(name) for name in columns} for row in rows], indent=2))
        return 0
    if args.csv:
        for line in ([*columns], *([row.get(name) for name in columns] for row in rows)):
            say(csv_line(line))
        return 0
    lines = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    heads = columns
    if sys.stdout.isatty() and not args.columns:
        width = shutil.get_terminal_size().columns
        heads, lines, left_out = _fitted(columns, lines, width, sort_by)
        if left_out:
            complain(f"left out for want of room: {', '.join(left_out)} (--columns chooses; a pipe gets all)")
    say(format_table(heads, lines, left=len(heads), rule=False))
    return 0


def _sorted(known: list[dict[str, Any]], column: str, *, largest_first: bool) -> list[dict[str, Any]]:
    """The runs' values by a column; those without it come last in either order."""
    there = [values for values in known if _is_known(values.get(column))]
    there.sort(key=lambda values: _order(values[column]), reverse=largest_first)
    return there + [values for values in known if not _is_known(values.get(column))]


def _cell(name: str, value: Any) -> str:
    from inception_jax.runs.records import show

    if not _is_known(value):
        return "-"
    if name == "time":
        return format_seconds(value)
    if isinstance(value, float) and name.endswith(("top1", "top5", "best_value")) and 0 <= value <= 1:
        return f"{value:.2%}"
    return f"{value:.6g}" if isinstance(value, float) else show(value)


def _fitted(
    columns: Sequence[str], lines: Sequence[Sequence[str]], width: int, sort_by: str
) -> tuple[list[str], list[list[str]], list[str]]:
    """The heads and cells of a table that fits a terminal, and the names of the columns that it has no room for.

    Field names and long values are shortened first. Then columns are left out: those that are the same for all runs,
    then those of least importance; of the fields, those with fewer different values.

    Args:
      width: of the terminal, in characters.
      sort_by: a column that stays.
    """
    cells = {name: [line[place] for line in lines] for place, name in enumerate(columns)}
    heads = {name: name for name in columns}

    def too_wide() -> bool:
        table = format_table(list(heads.values()), list(zip(*cells.values(), strict=True)), left=len(heads), rule=False)
        return max(map(text_width, table.splitlines())) > width

    if too_wide():
        last = Counter(name.rpartition(".")[2] for name in columns)
        for name in columns:
            short = name.rpartition(".")[2]
            heads[name] = short if last[short] == 1 else name
            if name != "run":
                cells[name] = [shortened(value, LONGEST) for value in cells[name]]
    fields = sorted((name for name in columns if name not in COLUMNS), key=lambda name: -len(set(cells[name])))
    by_importance = ["run", sort_by, *IMPORTANT, *fields, *COLUMNS]
    same = [name for name in columns if len(lines) > 1 and len(set(cells[name])) == 1 and name != sort_by]
    candidates = [*same, *sorted(set(columns) - {*same, "run"}, key=by_importance.index, reverse=True)]
    left_out = []
    while too_wide() and candidates:
        left_out.append(candidates.pop(0))
        del heads[left_out[-1]], cells[left_out[-1]]
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    return list(heads.values()), rows, [name for name in columns if name in left_out]


def _is_known(value: Any) -> bool:
    return value is not None and value == value  # NaN is not equal to itself


def _order(value: Any) -> tuple[int, Any]:
    """Sorts numbers before texts, which cannot be compared with them."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _values(record: "Record") -> dict[str, Any]:
    """All values that can be columns, by name."""
    from inception_jax.runs.records import flatten

    summary, last = record.summary or {}, record.rows[-1] if record.rows else {}
    last = {name: value for name, value in last.items() if math.isfinite(value)}
    found = flatten(record.config) | last | flatten(summary)
    epochs = f"{last.get('epoch', 0):g}/{record.config.get('num_epochs')}"
    found |= {
        "run": record.name,
        "status": record.status,
        "epochs": epochs,
        "data": record.config["data"].get("name"),
        "network": record.config["model"].get("name"),
        "best_value": record.best.get("value"),
        "time": summary.get("seconds", last.get("seconds")),
    }
    for split in ("validation", "test"):  # with the last weights
        found[f"{split}_top1"] = summary.get(split, {}).get("top1", found.get(f"{split}_top1"))
    return found
