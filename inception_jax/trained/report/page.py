"""What a page is made of, and its two forms: one HTML file that needs nothing else, or Markdown with PNG files."""

import base64
import dataclasses
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from inception_jax import files
from inception_jax.errors import unknown_name
from inception_jax.inspection.formats import format_table
from inception_jax.text import page_text, printable
from inception_jax.trained.report import drawing

FORMATS = ("html", "markdown")
LARGEST = 224  # pixels: pictures are reduced to this side, so that a page with many stays small
PHOTO = 64  # pixels: from this side on JPEG is smaller than PNG, and looks the same
JPEG_QUALITY = 88  # of 100, Pillow's
TALL = 30  # rows: a table with more scrolls inside its own box


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table's cell that stands out.

    Attributes:
      kind: "strong"; or how `share` is drawn: "bar" (a length), "right" or "wrong" (the strength of a colour).
      share: 0 to 1.
    """

    text: str
    kind: str = "strong"
    share: float = 0.0

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; a row of one cell is the title of those below it.

    Attributes:
      name: what it is, for those who cannot see it.
      left: how many columns are aligned to the left; the others are numbers.
      kind: "plain", "values" (names and values that wrap) or "matrix".
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: int = 1
    kind: str = "plain"
    block: ClassVar[str] = "table"

    @property
    def tall(self) -> bool:
        return self.kind != "values" and len(self.rows) > TALL


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing or a picture with its caption, and a text for those who cannot see it.

    Attributes:
      content: a Matplotlib figure, or uint8 (height, width), (height, width, 1) or (height, width, 3).
    """

    caption: str
    alt: str
    content: Figure | np.ndarray

    @property
    def small(self) -> bool:
        """Whether its pixels are to be seen as squares."""
        return not isinstance(self.content, Figure) and max(self.content.shape[:2]) < PHOTO

    @property
    def source(self) -> str:
        """A data URI; the same content gives the same bytes."""
        if isinstance(self.content, Figure):
            kind, content = "svg+xml", drawing.render(self.content, "svg")
        else:
            kind, file = ("png" if self.small else "jpeg"), io.BytesIO()
            _pillow(self.content).save(file, format=kind, quality=JPEG_QUALITY)
            content = file.getvalue()
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def png(self) -> bytes:
        """The content of a PNG file."""
        if isinstance(self.content, Figure):
            return drawing.render(self.content, "png")
        image, file = _pillow(self.content), io.BytesIO()
        times = math.ceil(2 * PHOTO / max(image.size)) if self.small else 1
        image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many as there is room for.

    Attributes:
      width: the least of one, rem.
    """

    pictures: Sequence[Picture]
    width: float = 24
    block: ClassVar[str] = "pictures"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Values with their names: (name, value)."""

    facts: Sequence[tuple[str, str]]
    block: ClassVar[str] = "facts"


@dataclasses.dataclass(frozen=True)
class Text:
    """A remark about what is above it."""

    text: str
    block: ClassVar[str] = "text"


Block = Table | Pictures | Facts | Text


@dataclasses.dataclass(frozen=True)
class Section:
    """Some blocks under a title; without any it is left out."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


@dataclasses.dataclass(frozen=True)
class Page:
    """A title, what a reader has to know first, and sections."""

    title: str
    notes: Sequence[str]
    sections: Sequence[Section]

    def write(self, path: Path, style: str = "html") -> Path:
        """Writes it to an HTML file or, in the style "markdown", into a folder as report.md and PNG files.

        Returns:
          the file with the page.

        Raises:
          UserError: the style is none of FORMATS.
          WriteError: it cannot be written.
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
        """One page with its pictures inside."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("inception_jax"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            finalize=page_text,
        )
        return environment.get_template("report.html").render(page=self, sections=self._filled())

    def _filled(self) -> list[Section]:
        return [section for section in self.sections if section.blocks]

    def _markdown(self) -> tuple[str, dict[str, bytes]]:
        """The same page, and the PNG files beside it by their names."""
        pictures: dict[str, bytes] = {}
        parts = [f"# {_plain(self.title)}", *(f"> {_plain(note)}" for note in self.notes)]
        numbers = Counter[str]()  # two sections may have the same anchor
        for section in self._filled():
            parts.append(f"## {_plain(section.title)}")
            for block in section.blocks:
                if isinstance(block, Table):
                    parts.append(_markdown_table(block))
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


def _markdown_table(table: Table) -> str:
    def cell(value: str | Cell) -> str:
        strong = isinstance(value, Cell) and value.kind == "strong" and value.text
        return f"**{_plain(str(value))}**" if strong else _plain(str(value))

    rows = [
        [f"**{_plain(str(row[0]))}**", *[""] * (len(table.header) - 1)] if len(row) == 1 else list(map(cell, row))
        for row in table.rows
    ]
    return format_table(list(map(_plain, table.header)), rows, "markdown", table.left)


def _plain(text: str) -> str:
    """Text of which nothing is markup, on one line."""
    text = printable(" ".join(text.split()))
    return re.sub(r"([\\`*\[\]|#$~])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
