"""Text for people: what comes from files and folders is made safe here, once, at the edge."""

import csv
import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
# What a formula begins with in a spreadsheet, also as the wide form of East Asian fonts.
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def printable(text: str) -> str:
    """The text on one line, without what would steer a terminal: control characters are shown as escapes.

    Names of files and classes may hold anything: newlines, ANSI escape codes, marks that turn the direction of writing,
    bytes that are not UTF-8.
    """
    if text.isprintable():  # the most, and fast
        return text
    return "".join(_escape(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    # Cc: control; Cf: format, such as bidirectional overrides; Cs: halves of characters; Zl, Zp: line ends.
    # U+200D joins emoji, U+200C is needed in Persian.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode() if unicodedata.category(char) != "Cs" else f"\\u{code:04x}"


def printable_lines(text: str) -> str:
    """As `printable`, but with its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def page_text(value: object) -> object:
    """What a page's template shows of a value (Jinja's `finalize`): markup as it is, all else as text."""
    return value if hasattr(value, "__html__") else printable_lines(str(value))


def say(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints for people, every line `printable`; what the stream's encoding lacks is shown as an escape, too.

    A name within the text has to be `printable` itself, or the cell of a table, where its line ends must not show.

    Args:
      file: None: standard output.
    """
    stream = file or sys.stdout
    safe = printable_lines(str(text))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(safe.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=flush)


def complain(message: object) -> None:
    """Prints a message on the standard error output, as one line."""
    say(printable(str(message)), file=sys.stderr)


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON that is safe to print: what `printable` escapes is escaped as JSON does it.

    What is not a finite number is null, for which other programs' JSON has no word.
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
    """The text as a cell that a spreadsheet does not take for a formula: a quote goes before `=`, `+`, `-` and `@`.

    Numbers stay numbers. A text that begins with a quote gets another, so that whoever reads the cell gets the text
    back by leaving out one quote in front.
    """
    if NUMBER.fullmatch(text):
        return text
    return f"'{text}" if text[:1] in ("'", "\t", "\r", "\n") or text.lstrip()[:1] in FORMULA else text


def csv_line(cells: Iterable[Any]) -> str:
    """A line of CSV to print, without its end: texts are `printable`, and no formulas."""
    line = io.StringIO()
    safe = [csv_cell(printable(cell)) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(line, lineterminator="").writerow(safe)
    return line.getvalue()


def width(text: str) -> int:
    """Columns of a terminal that a printable text takes: two for an East Asian wide character, none for an accent."""
    return sum(
        0 if unicodedata.combining(char) or char in "\u200c\u200d" else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def aligned(text: str, columns: int, *, left: bool = True) -> str:
    """The text with blanks after it, or before it, up to that many columns."""
    blanks = " " * (columns - width(text))
    return text + blanks if left else blanks + text


def shortened(text: str, longest: int) -> str:
    """Of a longer text the first `longest` characters, of which the last is an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def chart_label(name: str, longest: int | None = None) -> str:
    """A name as Matplotlib draws it, on one line: no formula, and not left out of a legend for an underscore in front.

    Args:
      longest: characters; the rest is cut off.
    """
    name = printable(name)
    name = shortened(name, longest) if longest else name
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def format_seconds(seconds: float) -> str:
    """A duration in words: "45 s", "1 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
