"""The elements of a page, and its two formats: a self-contained HTML file, or Markdown with PNG files."""

import base64
import dataclasses
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import matplotlib.figure
import numpy as np
from PIL import Image

from inception_jax import files
from inception_jax.errors import unknown_name
from inception_jax.inspection import drawing
from inception_jax.text import format_table, printable
from inception_jax.trained import pages

FORMATS = ("html", "markdown")
LARGEST = 224  # pixels: pictures are downscaled to this height, so that a page with many stays small
PHOTO = 64  # pixels: from this side, JPEG is smaller than PNG and looks the same
JPEG_QUALITY = 88  # Pillow's, out of 100
TALL = 30  # rows: longer tables scroll inside their own box


@dataclasses.dataclass(frozen=True)
class Cell:
    """A highlighted table cell.

    Attributes:
      kind: "strong"; or how `share` is drawn: "bar" (a length), "right" or "wrong" (the intensity of a color).
      share: 0 to 1.
    """

    text: str
    kind: str = "strong"
    share: float = 0.0

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class PageTable:
    """Rows of cells; a row of one cell is the title of those below it.

    Attributes:
      name: description for those who cannot see it.
      left: number of left-aligned columns; the others are numbers.
      kind: "plain", "values" (names and values that wrap) or "matrix".
      summary: what is shown of the table until it is opened; "": it is open.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: int = 1
    kind: str = "plain"
    summary: str = ""
    block: ClassVar[str] = "table"

    @property
    def tall(self) -> bool:
        return self.kind != "values" and len(self.rows) > TALL


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure or a picture with its caption and alternative text.

    Attributes:
      content: lines, another Matplotlib figure, or uint8 (height, width), (height, width, 1) or (height, width, 3).
    """

    caption: str
    alt: str
    content: pages.LineChart | matplotlib.figure.Figure | np.ndarray

    @property
    def lines(self) -> pages.LineChart | None:
        """The content if it is lines, whose values are shown, too."""
        return self.content if isinstance(self.content, pages.LineChart) else None

    @property
    def small(self) -> bool:
        """Whether its pixels are shown as squares."""
        return isinstance(self.content, np.ndarray) and max(self.content.shape[:2]) < PHOTO

    @property
    def source(self) -> str:
        """A data URI; the same content gives the same bytes."""
        if not isinstance(self.content, np.ndarray):
            return drawing.data_uri(self._drawn(self.content))
        kind, file = ("png" if self.small else "jpeg"), io.BytesIO()
        _pillow(self.content).save(file, format=kind, quality=JPEG_QUALITY)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

    def png(self) -> bytes:
        """The content of a PNG file."""
        if not isinstance(self.content, np.ndarray):
            return drawing.png(self._drawn(self.content))
        image, file = _pillow(self.content), io.BytesIO()
        times = math.ceil(2 * PHOTO / max(image.size)) if self.small else 1
        image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()

    @staticmethod
    def _drawn(content: pages.LineChart | matplotlib.figure.Figure) -> matplotlib.figure.Figure:
        return content.draw() if isinstance(content, pages.LineChart) else content


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many as fit.

    Attributes:
      width: minimum width of a picture, in rem.
    """

    pictures: Sequence[Figure]
    width: float = 24
    block: ClassVar[str] = "pictures"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Named values: (name, value)."""

    facts: Sequence[tuple[str, str]]
    block: ClassVar[str] = "facts"


@dataclasses.dataclass(frozen=True)
class Text:
    """A remark on the block above."""

    text: str
    block: ClassVar[str] = "text"


Block = PageTable | Pictures | Facts | Text


@dataclasses.dataclass(frozen=True)
class Section:
    """Blocks under a title; left out if there are none."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


@dataclasses.dataclass(frozen=True)
class Headline:
    """The result to quote, and what it was measured on."""

    number: str
    words: str


@dataclasses.dataclass(frozen=True)
class Page:
    """A title, notes to read first, sections and, above all of them, a result and how it came about.

    Attributes:
      origin: what was computed, when, and by which commit; "": nothing to say.
      command: with which it was computed; "": not known.
    """

    title: str
    notes: Sequence[str]
    sections: Sequence[Section]
    headline: Headline | None = None
    origin: str = ""
    command: str = ""

    def write(self, path: Path, style: str = "html") -> Path:
        """Writes the page to an HTML file or, with style="markdown", to a folder as report.md and PNG files.

        Returns:
          the page's path.

        Raises:
          UserError: the style is not one of FORMATS.
          WriteError: the page cannot be written.
        """
        if style not in FORMATS:
            raise unknown_name("format", style, FORMATS)
        if style == "html":
            files.write_text(path, self.html())
            return path
        text, pictures = self._markdown()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.cannot_write(path, error) from error
        page = path / "report.md"
        with files.whole_files([page, *(path / name for name in pictures)]) as (new_page, *new_pictures):
            new_page.write_text(text, encoding="utf-8", errors="backslashreplace")
            for new, content in zip(new_pictures, pictures.values(), strict=True):
                new.write_bytes(content)
        return page

    def html(self) -> str:
        """The page as HTML with embedded pictures."""
        return pages.environment().get_template("report.html").render(page=self, sections=self._filled())

    def _filled(self) -> list[Section]:
        return [section for section in self.sections if section.blocks]

    def _markdown(self) -> tuple[str, dict[str, bytes]]:
        """The page as Markdown, and its PNG files by name."""
        pictures: dict[str, bytes] = {}
        parts = [f"# {_plain(self.title)}"]
        if self.headline:
            parts.append(f"**{_plain(self.headline.number)}** {_plain(self.headline.words)}")
        parts += [_plain(self.origin)] if self.origin else []
        parts += [f"    {printable(self.command)}"] if self.command else []
        parts += [f"> {_plain(note)}" for note in self.notes]
        numbers = Counter[str]()  # two sections may have the same anchor
        for section in self._filled():
            parts.append(f"## {_plain(section.title)}")
            for block in section.blocks:
                if isinstance(block, PageTable):
                    parts += _markdown_table(block)
                elif isinstance(block, Facts):
                    parts.append("\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in block.facts))
                elif isinstance(block, Text):
                    parts.append(_plain(block.text))
                else:
                    for picture in block.pictures:
                        numbers[section.anchor] += 1
                        name = f"{section.anchor}-{numbers[section.anchor]}.png"
                        pictures[name] = picture.png()
                        parts.append(f"![{_plain(picture.alt)}]({name})\\\n{_plain(picture.caption)}")
        return "\n\n".join(parts) + "\n", pictures


def _pillow(content: np.ndarray) -> Image.Image:
    image = Image.fromarray(content.squeeze(-1) if content.shape[2:] == (1,) else content)
    if image.height > LARGEST:
        image = image.resize((max(1, round(image.width * LARGEST / image.height)), LARGEST))
    return image


def _markdown_table(table: PageTable) -> list[str]:
    def cell(value: str | Cell) -> str:
        strong = isinstance(value, Cell) and value.kind == "strong" and value.text
        return f"**{_plain(str(value))}**" if strong else _plain(str(value))

    rows = [
        [f"**{_plain(str(row[0]))}**", *[""] * (len(table.header) - 1)] if len(row) == 1 else list(map(cell, row))
        for row in table.rows
    ]
    text = format_table(list(map(_plain, table.header)), rows, "markdown", table.left)
    return [f"<details><summary>{_plain(table.summary)}</summary>", text, "</details>"] if table.summary else [text]


def _plain(text: str) -> str:
    """Text on one line, with markup escaped."""
    text = printable(" ".join(text.split()))
    return re.sub(r"([\\`*\[\]|#$~])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
