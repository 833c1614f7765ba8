"""Draws the layer x expert maps as a table, with each layer's routes next to them. heat.py fits them to the screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from client.metrics.snapshot import ROUTES, Layer
from client.top import heat

Choice = Literal["auto", "both", "recent", "decayed"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
"""Which maps are shown. "auto" shows both if the screen has a column for every expert in both, else the recent one."""

SHADES = " .:-=+*#%@"
"""From cold to hot, for terminals without colours."""

_OTHER_COLUMNS = 36  # the width of layer, routes, imbalance and resident, with the space between columns
_LEAST_COLUMNS = 8
_NUMBER_COLUMNS = 4  # for a mark, two digits and a space
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Ink:
    """What the terminal can display.

    Attributes:
        colours: Whether it has colours.
        ascii_only: Whether it is limited to ASCII.
    """

    colours: bool
    ascii_only: bool

    @property
    def all_resident(self) -> str:
        """Marks a cell whose experts are all resident on the device."""
        return "*" if self.ascii_only else "•"

    @property
    def some_resident(self) -> str:
        """Marks a cell with some resident experts."""
        return "." if self.ascii_only else "·"


@dataclass(frozen=True, slots=True)
class _Map:
    title: str
    rows: list[list[float] | None]


def num_experts(layers: Sequence[Layer]) -> int:
    """The largest number of experts in a layer; 0 if selections by expert are not exported."""
    return max([0, *(len(layer.selections or layer.decayed_selections or ()) for layer in layers)])


def scale(layers: Sequence[Layer]) -> float:
    """The value of the hottest colour. Both maps share it, so that they can be compared."""
    values = [
        heat.shares(selections) for layer in layers for selections in (layer.selections, layer.decayed_selections)
    ]
    return heat.scale(values)


def table(layers: Sequence[Layer], *, choice: Choice, window: str, ink: Ink, columns: int, rows: int | None) -> Table:
    """Draws the maps.

    Args:
        layers: At least one layer.
        choice: Which maps to show.
        window: The title of the recent map: the time that it covers.
        ink: What the terminal can display.
        columns: The columns of the screen.
        rows: The rows of the screen for the table, two lines of headings included; None for no limit.
    """
    experts = num_experts(layers)
    space = max(_LEAST_COLUMNS, columns - _OTHER_COLUMNS)
    is_both = choice == "both" or (choice == "auto" and 2 * experts + 2 <= space)
    maps = _maps(layers, "both" if is_both else choice, window) if experts else []
    fit = heat.Fit.of(experts, (space - 2 * (len(maps) - 1)) // len(maps)) if maps else None
    painter = _Painter(num_experts=experts, fit=fit, hottest=scale(layers), ink=ink) if fit else None
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    shown.add_column("\nlayer", justify="right", no_wrap=True)
    groups = heat.layer_groups(len(layers), None if rows is None else rows - 2)
    for each in maps:
        assert fit is not None
        together = fit.experts_per_cell * len(groups[0])
        binned = f", max of {together}" if together > 1 else ""
        if (size := max(layer.experts_per_band for layer in layers)) > 1:
            binned += f", bands of {size}"
        shown.add_column(Text(f"{each.title}{binned}\n{_ruler(fit)}"), no_wrap=True, width=fit.columns)
    for heading in ("% res", "\nstr", "\nrem", "im-\nbal", "on\ndev"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        members = [layers[index] for index in group]
        pictures = [painter.row([each.rows[index] for index in group], members) for each in maps] if painter else []
        shown.add_row(_label(members), *pictures, *_other_columns(members))
    return shown


def _maps(layers: Sequence[Layer], choice: Choice, window: str) -> list[_Map]:
    maps = []
    if choice != "decayed":
        maps.append(_Map(window, [heat.shares(layer.selections) for layer in layers]))
    if choice in ("both", "decayed"):
        maps.append(_Map("decayed", [heat.shares(layer.decayed_selections) for layer in layers]))
    return maps


def _ruler(fit: heat.Fit) -> str:
    """The indices of experts above their cells, as many as fit."""
    line = ""
    for cell in range(fit.num_cells):
        start = cell * fit.cell_width
        index = str(cell * fit.experts_per_cell)
        fits = start + len(index) <= fit.columns
        if fits and (not line or start > len(line)) and (fit.cell_width > 1 or cell % 8 == 0):
            line = line.ljust(start) + (" " if fit.cell_width >= 3 else "") + index
    return line[: fit.columns]


@dataclass(frozen=True, slots=True)
class _Painter:
    """Draws the cells of maps of one size and scale."""

    num_experts: int
    fit: heat.Fit
    hottest: float
    ink: Ink

    def row(self, values: Sequence[list[float] | None], members: Sequence[Layer]) -> Text:
        """One row of a map, which shows these layers."""
        text = Text()
        residents = [layer.resident for layer in members]
        cells = heat.cells(
            values, resident=residents, num_experts=self.num_experts, experts_per_cell=self.fit.experts_per_cell
        )
        for cell in cells:
            text.append(*self._cell(cell))
        return text

    def _cell(self, cell: heat.Cell) -> tuple[str, Style]:
        mark = " "
        if cell.resident:
            mark = self.ink.all_resident if cell.resident == 1 else self.ink.some_resident
        width = self.fit.cell_width
        if cell.value is None:
            return mark.ljust(width), Style(dim=True)
        if width >= _NUMBER_COLUMNS and self.fit.experts_per_cell == 1:
            content = f"{mark}{100 * cell.value / self.num_experts:>2.0f}"
        elif self.ink.colours:
            content = mark
        else:
            shade = SHADES[min(len(SHADES) - 1, int(cell.value / self.hottest * len(SHADES)))]
            content = shade if width == 1 else mark + shade
        if not self.ink.colours:
            return content.ljust(width), Style()
        rgb = heat.colour(cell.value, self.hottest)
        text_colour = _BLACK if heat.is_light(rgb) else _WHITE
        return content.ljust(width), Style(color=Color.from_rgb(*text_colour), bgcolor=Color.from_rgb(*rgb))


def _label(members: Sequence[Layer]) -> str:
    first, last = members[0].layer, members[-1].layer
    return str(first) if first == last else f"{first}-{last}"


def _other_columns(members: Sequence[Layer]) -> list[str]:
    """Shares by route in per cent, the largest imbalance, and the number of resident experts, over these layers."""
    totals = {route: sum((layer.routes or {}).get(route, 0.0) for layer in members) for route in ROUTES}
    total = sum(totals.values())
    routes = [f"{100 * totals[route] / total:.0f}" if total else "-" for route in ROUTES]
    imbalances = [layer.imbalance for layer in members if layer.imbalance is not None]
    residents = [layer.num_resident for layer in members if layer.num_resident is not None]
    return [
        *routes,
        f"{max(imbalances):.1f}" if imbalances else "-",
        f"{sum(residents)}" if residents else "-",
    ]
