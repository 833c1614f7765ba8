"""Fits a layer x expert map to the columns and rows of the screen, and chooses colours. maps.py draws it.

A value is an expert's share of the layer's selections, divided by the even share: 1 is even, 0 is never selected. If
there are more experts than columns, neighbours share a cell, which shows the largest value: a mean would hide the hot
experts that the map is there to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SCALE = 2.0
_WIDEST_CELL = 4
# From cold to hot: anchors of matplotlib's inferno, whose lightness ascends, so it can be read without colours.
_ANCHORS = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (252, 255, 164))

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the map.

    Attributes:
        value: The largest value of its experts; None if the layer was not used.
        resident: The share of its experts that are resident on the device; None if that is not known.
    """

    value: float | None
    resident: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How many columns of the screen and how many experts a cell takes.

    Attributes:
        experts_per_cell: 1, or more if there are too few columns.
        cell_width: Columns of the screen for each cell.
        num_cells: Cells in a row.
    """

    experts_per_cell: int
    cell_width: int
    num_cells: int

    @classmethod
    def of(cls, num_experts: int, columns: int) -> Fit:
        """The widest cells with the fewest experts each."""
        experts_per_cell = math.ceil(num_experts / max(1, columns))
        num_cells = math.ceil(num_experts / experts_per_cell)
        cell_width = min(_WIDEST_CELL, max(1, columns // num_cells))
        return cls(experts_per_cell, cell_width, num_cells)

    @property
    def columns(self) -> int:
        """The width of the map, in columns of the screen."""
        return self.num_cells * self.cell_width


def shares(selections: Sequence[float] | None) -> list[float] | None:
    """The values of a layer, [experts]; None if nothing was selected, or that is not known."""
    total = sum(selections or ())
    return [count * len(selections) / total for count in selections] if selections and total else None


def cells(
    rows: Sequence[Sequence[float] | None],
    *,
    resident: Sequence[Sequence[int] | None],
    num_experts: int,
    experts_per_cell: int,
) -> list[Cell]:
    """The cells of one row of the screen, which shows one layer or several.

    Args:
        rows: The values of each layer, [experts].
        resident: The experts of each layer that are resident on the device.
        num_experts: Experts in a layer.
        experts_per_cell: How many neighbours share a cell.
    """
    sets = [None if layer is None else set(layer) for layer in resident]
    found = []
    for start in range(0, num_experts, experts_per_cell):
        experts = range(start, min(start + experts_per_cell, num_experts))
        values = [row[expert] for row in rows if row is not None for expert in experts if expert < len(row)]
        flags = [expert in layer for layer in sets if layer is not None for expert in experts]
        found.append(Cell(max(values, default=None), sum(flags) / len(flags) if flags else None))
    return found


def scale(rows: Sequence[Sequence[float] | None]) -> float:
    """The value of the hottest colour: the largest value, and at least twice the even share."""
    return max([_LEAST_SCALE, *(max(row) for row in rows if row)])


def colour(value: float, hottest: float) -> Rgb:
    """The colour of a value between 0 and the hottest."""
    place = min(1.0, max(0.0, value / hottest)) * (len(_ANCHORS) - 1)
    index = min(int(place), len(_ANCHORS) - 2)
    cold, hot, part = _ANCHORS[index], _ANCHORS[index + 1], place - index
    red, green, blue = (round(low + (high - low) * part) for low, high in zip(cold, hot, strict=True))
    return red, green, blue


def is_light(rgb: Rgb) -> bool:
    """Whether dark text is easier to read on this colour than light text."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140


def layer_groups(num_layers: int, rows: int | None) -> list[range]:
    """The layers of each row of the screen. With rows=None there is no limit, and each layer has its own row."""
    size = 1 if rows is None else math.ceil(num_layers / max(1, rows))
    return [range(start, min(start + size, num_layers)) for start in range(0, num_layers, max(1, size))]
