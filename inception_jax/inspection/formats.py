"""Tables as text, Markdown and CSV."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inception_jax.errors import check_choice
from inception_jax.text import aligned, csv_line, printable, width

if TYPE_CHECKING:
    pass

FORMATS = ("text", "markdown", "csv")


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "text", left: int = 1, *, rule: bool = True
) -> str:
    """Formats a table, without a final newline; the first `left` columns are left-aligned, the others right-aligned.

    Cells may contain any characters: each is made `printable` on one line.

    Args:
      rule: in style "text", whether there is a line of hyphens below the header.

    Raises:
      UserError: the style is not one of FORMATS.
    """
    check_choice("format", style, FORMATS)
    if style == "csv":
        return "\n".join(map(csv_line, [header, *rows]))
    cells = [list(map(printable, row)) for row in (header, *rows)]
    if style == "markdown":
        cells.insert(1, ["---" if column < left else "---:" for column in range(len(header))])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    if rule:
        cells.insert(1, ["-" * columns for columns in widths])
    lines = (
        "  ".join(aligned(cell, widths[column], left=column < left) for column, cell in enumerate(row)) for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def human(number: float) -> str:
    """Four digits and a unit: 112,896,000 is 112.9M. Numbers below a thousand have no unit; zero is ""."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.99995 * size:
            return f"{number / size:#.4g}{unit}"
    return f"{number:.4g}" if number else ""


def times(sides: Sequence[int]) -> str:
    """Sizes along several axes: 112x112x64."""
    return "x".join(map(str, sides))
