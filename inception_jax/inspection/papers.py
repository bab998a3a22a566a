"""Costs as printed in papers, next to those of the network."""

from typing import NamedTuple

from inception_jax.errors import UserError
from inception_jax.inspection.table import LayerTable
from inception_jax.text import format_table

DIFFERS = 0.02  # figures that differ from the printed ones by more than this share, and than rounding, are marked
ROUNDING = 0.5


class Printed(NamedTuple):
    """A row of a printed table: our layers that it covers, thousands of parameters, millions of operations."""

    layers: tuple[str, ...]
    params: float
    ops: float


# The columns "params" and "ops" of Table 1 of Szegedy et al. 2015, "Going deeper with convolutions" (CVPR). Their K is
# 1,024 and their M a million. Biases are not counted: 112K and 360M are 114,688 weights at 56x56 positions.
SZEGEDY_2015 = {
    "convolution": Printed(("conv1",), 2.7, 34),
    "convolution 2": Printed(("conv2", "conv3"), 112, 360),
    "inception (3a)": Printed(("inception_3a",), 159, 128),
    "inception (3b)": Printed(("inception_3b",), 380, 304),
    "inception (4a)": Printed(("inception_4a",), 364, 73),
    "inception (4b)": Printed(("inception_4b",), 437, 88),
    "inception (4c)": Printed(("inception_4c",), 463, 100),
    "inception (4d)": Printed(("inception_4d",), 580, 119),
    "inception (4e)": Printed(("inception_4e",), 840, 170),
    "inception (5a)": Printed(("inception_5a",), 1072, 54),
    "inception (5b)": Printed(("inception_5b",), 1388, 71),
    "linear": Printed(("fc",), 1000, 1),
}
NOTES = """\
Szegedy et al. 2015, Table 1; K = 1,024 weights without biases, M = 1,000,000 multiply-adds; * more than 2 % apart.
convolution: 7x7 from 3 to 64 channels has 9,408 weights and 118.0 M multiply-adds. The printed 2.7K and 34M are about
  those of a separable one (7x7 with 8 filters a channel, then 1x1 from 24 to 64): 2,712 and 34.0 M. The authors'
  released Inception v2 has that stem.
inception (4c): the printed row contradicts itself: 463K weights at 14x14 positions would be 93M. Its ops are right.
inception (5a): 1072K and 54M are exactly those of an input 928 deep; the output of 4e, before it, is 832 deep.
The other rows' ops are right to the last digit, but for 4a: 73M, where 73.6M is true; their params are within 2 %."""


def against_paper(table: LayerTable, style: str = "text") -> str:
    """Table 1 of the GoogLeNet paper as printed, next to the same rows of a network's own table.

    Raises:
      UserError: the table does not have GoogLeNet's layers for images of 224x224x3.
    """
    own = {row.name: row for row in table.rows}
    missing = [name for printed in SZEGEDY_2015.values() for name in printed.layers if name not in own]
    if missing or table.image_shape != (224, 224, 3):
        found = f"this network has no {missing[0]}" if missing else f"these are {'x'.join(map(str, table.image_shape))}"
        raise UserError(f"the paper's table is of googlenet for images of 224x224x3; {found}")
    lines = []
    for name, (layers, params, ops) in SZEGEDY_2015.items():
        weights = sum(own[layer].weights for layer in layers) / 1024
        lines.append((name, params, weights, ops, sum(own[layer].multiply_adds for layer in layers) / 1e6))
    lines.append(("total", *(sum(line[column] for line in lines) for column in range(1, 5))))
    header = ["layer", "params, paper", "params", "difference", "ops, paper", "ops", "difference", ""]
    if style == "csv":
        header = ["layer", "paper_params_k", "params_k", "params_difference"]
        header += ["paper_ops_m", "ops_m", "ops_difference", "differs"]
    rows = []
    for name, *figures in lines:
        cells, apart = [name], False
        for (printed, true), unit in zip((figures[:2], figures[2:]), "KM", strict=True):
            difference = true / printed - 1
            apart |= abs(true - printed) > max(DIFFERS * printed, ROUNDING)
            if style == "csv":
                cells += [f"{printed:g}", f"{true:.6g}", f"{difference:.6f}"]
            else:
                cells += [f"{printed:,.5g}{unit}", f"{true:,.1f}{unit}", f"{difference:+.1%}"]
        rows.append([*cells, "*" if apart else ""])
    return format_table(header, rows, style)
