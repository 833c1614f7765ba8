"""A layer x expert map, fitted to the columns and rows that there are. Colours and text are for whoever draws it.

A value is a share of the layer's selections over the even share: 1 is even, 0 never chosen. Where experts are more
than columns, neighbours share a cell, which shows the largest of them: a mean would hide what the map is looked at for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SCALE = 2.0
_WIDEST_CELL = 4
# from cold to hot; lightness ascends, so that it also reads without colours. Anchors of matplotlib's inferno.
_ANCHORS = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (252, 255, 164))

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one place on the screen shows.

    Attributes:
        value: The largest of its experts; None where the layer was not used.
        resident: The share of its experts that lie on the device; None where that is not known.
    """

    value: float | None
    resident: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How a map of num_experts columns lies in the columns of the screen.

    Attributes:
        experts_per_cell: 1, or more where they do not fit.
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
        """Columns of the screen that it takes."""
        return self.num_cells * self.cell_width


def shares(selections: Sequence[float] | None) -> list[float] | None:
    """[experts] values of a layer; None where nothing was chosen, or it is not known."""
    total = sum(selections or ())
    return [count * len(selections) / total for count in selections] if selections and total else None


def cells(
    rows: Sequence[Sequence[float] | None],
    resident: Sequence[Sequence[int] | None],
    num_experts: int,
    experts_per_cell: int,
) -> list[Cell]:
    """One row of the screen, which stands for one layer or for several.

    Args:
        rows: Each layer's values, [experts].
        resident: Each layer's experts that lie on the device.
        num_experts: Of a layer.
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
    """The value of the hottest colour: the largest, or twice the even share where nothing is hotter."""
    return max([_LEAST_SCALE, *(max(row) for row in rows if row)])


def colour(value: float, hottest: float) -> Rgb:
    """The colour of a value between 0 and the hottest."""
    place = min(1.0, max(0.0, value / hottest)) * (len(_ANCHORS) - 1)
    index = min(int(place), len(_ANCHORS) - 2)
    cold, hot, part = _ANCHORS[index], _ANCHORS[index + 1], place - index
    red, green, blue = (round(low + (high - low) * part) for low, high in zip(cold, hot, strict=True))
    return red, green, blue


def is_light(rgb: Rgb) -> bool:
    """Whether dark text is read better on it."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140


def layer_groups(num_layers: int, rows: int | None) -> list[range]:
    """Which layers share a row of the screen; None: there is no end of rows."""
    size = 1 if rows is None else math.ceil(num_layers / max(1, rows))
    return [range(start, min(start + size, num_layers)) for start in range(0, num_layers, max(1, size))]
