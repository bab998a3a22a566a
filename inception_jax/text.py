"""Text output: content from files and folders is escaped here, once, when it is printed."""

import csv
import html
import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from inception_jax.errors import check_choice

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
# Characters that start a formula in a spreadsheet, and their fullwidth forms.
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
TABLE_FORMATS = ("text", "markdown", "csv")


def printable(text: str) -> str:
    """The text on one line, with control characters that could affect a terminal shown as escapes.

    Names of files and classes may contain anything: newlines, ANSI escape codes, bidirectional marks, bytes that are
    not UTF-8.
    """
    if text.isprintable():  # the common case, and fast
        return text
    return "".join(_escape(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    # Cc: control; Cf: format, such as bidirectional overrides; Cs: surrogates; Zl, Zp: line separators.
    # U+200D joins emoji, U+200C is needed in Persian.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode() if unicodedata.category(char) != "Cs" else f"\\u{code:04x}"


def printable_lines(text: str) -> str:
    """Like `printable`, but keeps line ends."""
    return "\n".join(map(printable, text.split("\n")))


def page_text(value: object) -> object:
    """Jinja's `finalize` for the pages' templates: markup is kept, everything else is converted to text."""
    return value if hasattr(value, "__html__") else printable_lines(str(value))


def say(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints to the user, each line `printable`; characters that the stream's encoding lacks are escaped, too.

    Names within the text, and table cells, must be made `printable` by the caller: their line ends would be kept here.

    Args:
      file: None: standard output.
    """
    stream = file or sys.stdout
    safe = printable_lines(str(text))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(safe.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=flush)


def complain(message: object) -> None:
    """Prints a message to standard error, as one line."""
    say(printable(str(message)), file=sys.stderr)


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON that is safe to print: characters that `printable` escapes get JSON escapes.

    Non-finite numbers become null, since standard JSON cannot represent them.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return "".join(_json_escape(char) if _is_unsafe(char) and char != "\n" else char for char in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))


def csv_cell(text: str) -> str:
    """The text as a cell that a spreadsheet does not read as a formula: `=`, `+`, `-` and `@` get a leading quote.

    Numbers stay numbers. A text that begins with a quote gets another one, so that removing one leading quote always
    restores the text.
    """
    if NUMBER.fullmatch(text):
        return text
    return f"'{text}" if text[:1] in ("'", "\t", "\r", "\n") or text.lstrip()[:1] in FORMULA else text


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV to print, without its line end: texts are `printable`, and not formulas."""
    line = io.StringIO()
    safe = [csv_cell(printable(cell)) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(line, lineterminator="").writerow(safe)
    return line.getvalue()


def width(text: str) -> int:
    """Terminal columns of a printable text: two for an East Asian wide character, none for a combining accent."""
    return sum(
        0 if unicodedata.combining(char) or char in "\u200c\u200d" else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def aligned(text: str, columns: int, *, left: bool = True) -> str:
    """The text padded with spaces to that many columns, on the right or on the left."""
    blanks = " " * (columns - width(text))
    return text + blanks if left else blanks + text


def columns(rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """The rows as lines with cells below one another, two spaces apart; cells must be `printable`.

    Args:
      left: number of columns that are left-aligned, from the first on; the others are right-aligned. None: all.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = (
        [aligned(cell, widths[place], left=left is None or place < left) for place, cell in enumerate(row)]
        for row in rows
    )
    return ["  ".join(cells).rstrip() for cells in lines]


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "text", left: int = 1, *, rule: bool = True
) -> str:
    """Formats a table, without a final newline; the first `left` columns are left-aligned, the others right-aligned.

    Cells may contain any characters: each is made `printable` on one line.

    Args:
      rule: in style "text", whether there is a line of hyphens below the header.

    Raises:
      UserError: the style is not one of TABLE_FORMATS.
    """
    check_choice("format", style, TABLE_FORMATS)
    if style == "csv":
        return "\n".join(map(csv_line, [header, *rows]))
    cells = [list(map(printable, row)) for row in (header, *rows)]
    if style == "markdown":
        cells.insert(1, ["---" if column < left else "---:" for column in range(len(header))])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    if rule:
        cells.insert(1, ["-" * max(map(width, column)) for column in zip(*cells, strict=True)])
    return "\n".join(columns(cells, left))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table, for notebooks; cells may contain any characters."""

    def line(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{html.escape(printable(cell))}</{kind}>' for cell in cells)}</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def listed(entries: Sequence[object], most: int, separator: str = ", ") -> str:
    """The first `most` entries for a message, and how many more there are."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return separator.join(map(str, entries[:most])) + more


def shortened(text: str, longest: int) -> str:
    """The text, cut to `longest` characters with an ellipsis as the last one."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def chart_label(name: str, longest: int | None = None) -> str:
    """A name as a one-line Matplotlib label: not parsed as a formula, nor hidden in legends for a leading underscore.

    Args:
      longest: number of characters; the rest is cut off.
    """
    name = printable(name)
    name = shortened(name, longest) if longest else name
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def human(number: float) -> str:
    """Four digits and a unit: 112,896,000 is 112.9M. Numbers below a thousand have no unit; zero is ""."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.99995 * size:
            return f"{number / size:#.4g}{unit}"
    return f"{number:.4g}" if number else ""


def times(sides: Sequence[int]) -> str:
    """Sizes along several axes: 112x112x64."""
    return "x".join(map(str, sides))


def format_seconds(seconds: float) -> str:
    """A duration in words: "45 s", "1 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
