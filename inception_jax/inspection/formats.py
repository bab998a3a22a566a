"""Tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from inception_jax.models.layers import check_choice

FORMATS = ("text", "markdown", "csv")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "text", left: int = 1) -> str:
    """The table without a final line break; its first `left` columns are aligned to the left, the others to the right.

    Raises:
      UserError: the style is none of FORMATS.
    """
    check_choice("format", style, FORMATS)
    if style == "csv":
        page = io.StringIO()
        csv.writer(page, lineterminator="\n").writerows([header, *rows])
        return page.getvalue().rstrip("\n")
    if style == "markdown":
        rule = ["---" if column < left else "---:" for column in range(len(header))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in (header, ["-" * width for width in widths], *rows))
    )
    return "\n".join(line.rstrip() for line in lines)


def human(number: float) -> str:
    """Four digits and a unit: 112,896,000 is 112.9M. Below a thousand it is as it is; zero is nothing."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.99995 * size:
            return f"{number / size:#.4g}{unit}"
    return f"{number:.4g}" if number else ""


def times(sides: Sequence[int]) -> str:
    """Sizes along several axes: 112x112x64."""
    return "x".join(map(str, sides))
