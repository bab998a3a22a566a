"""A table of a network's layers and their costs, like Table 1 of Szegedy et al. 2015."""

import dataclasses
from collections.abc import Sequence

from flax import linen as nn

from inception_jax.inspection.trace import Row, trace_layers
from inception_jax.text import format_table, human, times


@dataclasses.dataclass(frozen=True, repr=False)
class LayerTable:
    """Rows in the order of the calls, and the whole network as `total`.

    The costs of a row include those of its submodules, so rows of different levels overlap. `str()` is the text table;
    notebooks display it as Markdown.
    """

    image_shape: tuple[int, int, int]
    rows: tuple[Row, ...]
    total: Row

    def __getitem__(self, name: str) -> Row:
        """The row of that name (KeyError if there is none); the first if a module is called several times."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def format(self, style: str = "text") -> str:
        """Formats as "text" or "markdown" with rounded numbers, or as "csv" with exact ones and shares from 0 to 1."""
        exact = style == "csv"
        filters = list(dict.fromkeys(field for row in self.rows for field in row.filters))
        header = ["layer", "type", "patch/stride", "output", "depth", *map(_title, filters)]
        header += ["parameters", "share", "multiply-adds", "share"]
        if exact:
            header = ["layer", "type", "patch", "stride", *header[3:-4]]
            header += ["parameters", "parameters_share", "multiply_adds", "multiply_adds_share"]
        rows = []
        for row in (*self.rows, self.total):
            name, kind = (row.name, row.kind) if row is not self.total else ("total", "")
            window = [times(row.window), _stride(row.strides)]
            cells = [name, kind, *(window if exact else ["/".join(filter(None, window))]), times(row.output)]
            cells.append(str(row.depth) if exact or row.depth else "")
            cells += [str(row.filters.get(field, "")) for field in filters]
            for part, whole in (
                (row.parameters, self.total.parameters),
                (row.multiply_adds, self.total.multiply_adds),
            ):
                share = part / whole if whole else 0.0
                if exact:
                    cells += [str(part), f"{share:.6f}"]
                else:
                    cells += [human(part), f"{share:.1%}" if part else ""]
            rows.append(cells)
        return format_table(header, rows, style, left=2)

    def __str__(self) -> str:
        return self.format()

    def __repr__(self) -> str:
        return (
            f"LayerTable({len(self.rows)} rows, images of {times(self.image_shape)}: {human(self.total.parameters)} "
            f"parameters, {human(self.total.multiply_adds)} multiply-adds)"
        )

    def _repr_markdown_(self) -> str:
        return self.format("markdown")


def layer_table(
    model: nn.Module, image_size: int | Sequence[int] | None = None, channels: int = 3, depth: int = 1
) -> LayerTable:
    """Tabulates the layers of a network, ours or any other in Linen, without computing anything.

    Args:
      image_size: side of the images, or (height, width), pixels; None: the network's `native_image_size`, else 224.
      channels: of the images.
      depth: number of levels of nested modules that have rows.

    Raises:
      UserError: the images are too small for the network.
    """
    image_shape = image_shape_of(model, image_size, channels)
    total, *rows = trace_layers(model, image_shape)
    return LayerTable(image_shape, tuple(row for row in rows if row.level <= depth), total)


def image_shape_of(
    model: nn.Module, image_size: int | Sequence[int] | None = None, channels: int = 3
) -> tuple[int, int, int]:
    """(height, width, channels) of the images for which a network is inspected."""
    size = getattr(model, "native_image_size", 224) if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, channels


def _stride(strides: Sequence[int]) -> str:
    """One number if it is the same along every axis."""
    return times(strides[:1] if len(set(strides)) == 1 else strides)


def _title(field: str) -> str:
    """As in Table 1: conv_3x3_reduce is "#3x3 reduce"."""
    return ("#" + field.removeprefix("conv_") if field.startswith("conv_") else field).replace("_", " ")
