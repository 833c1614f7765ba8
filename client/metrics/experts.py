"""Selections by layer and expert, from readings of the GPU service."""

from collections.abc import Iterable, Sequence

from client.metrics import names
from client.metrics.rates import Growth
from client.metrics.scrape import Exposition, Series
from client.metrics.snapshot import ROUTES, HotExpert, Layer

_NUM_HOTTEST = 5


class DecayedSelections:
    """Selections by layer and expert, weighted less the older they are."""

    def __init__(self, half_life_seconds: float) -> None:
        self._half_life_seconds = half_life_seconds
        self._selections: dict[int, list[float]] = {}

    def add(self, growth: Growth) -> None:
        """Adds the selections between two readings."""
        weight = 0.5 ** (growth.seconds / self._half_life_seconds)
        for layer, new in _by_expert(growth, names.SELECTIONS_BY_EXPERT).items():
            old = self._selections.get(layer, [])
            if len(old) != len(new):  # first reading, or the service restarted with another model
                old = [0.0] * len(new)
            self._selections[layer] = [weight * before + more for before, more in zip(old, new, strict=True)]

    def of(self, layer: int) -> list[float] | None:
        """The weighted selections of a layer, [experts]; None if nothing is known about it."""
        return self._selections.get(layer)


def layers(now: Exposition, growth: Growth | None, decayed: DecayedSelections) -> list[Layer]:
    """All layers that the service exports metrics of, ascending.

    Args:
        now: The latest reading.
        growth: The growth within the window; None until there are two readings.
        decayed: The selections seen so far.
    """
    selections = _by_expert(growth, names.SELECTIONS_BY_EXPERT) if growth else {}
    routes = _by_route(growth) if growth else {}
    flags = _by_expert(now, names.RESIDENT)
    num_resident = _by_layer(now, names.NUM_RESIDENT)
    imbalance = _by_layer(now, names.IMBALANCE)
    known = {int(layer) for name in (names.SELECTIONS, names.RESIDENT) for (layer,) in now.by(name, "layer")}
    found = []
    for layer in sorted(known):
        resident = [expert for expert, flag in enumerate(flags[layer]) if flag] if layer in flags else None
        count = num_resident.get(layer)
        found.append(
            Layer(
                layer=layer,
                routes=routes.get(layer),
                selections=selections.get(layer),
                decayed_selections=decayed.of(layer),
                imbalance=_imbalance(selections[layer]) if layer in selections else imbalance.get(layer),
                resident=resident,
                num_resident=int(count) if count is not None else None if resident is None else len(resident),
            )
        )
    return found


def route_shares(by_layer: Iterable[Layer]) -> dict[str, float] | None:
    """Each route's share of the selections of all layers; None if there were no selections."""
    totals = dict.fromkeys(ROUTES, 0.0)
    for layer in by_layer:
        for route, selections in (layer.routes or {}).items():
            totals[route] = totals.get(route, 0.0) + selections
    total = sum(totals.values())
    return {route: selections / total for route, selections in totals.items()} if total else None


def hottest(by_layer: Iterable[Layer]) -> list[HotExpert]:
    """The experts with the largest shares of their layers' selections, largest first."""
    found = []
    for layer in by_layer:
        total = sum(layer.selections or ())
        for expert, selections in enumerate(layer.selections or ()):
            if selections:
                resident = None if layer.resident is None else expert in layer.resident
                found.append(HotExpert(layer=layer.layer, expert=expert, share=selections / total, resident=resident))
    return sorted(found, key=lambda hot: (-hot.share, hot.layer, hot.expert))[:_NUM_HOTTEST]


def _imbalance(selections: Sequence[float]) -> float | None:
    total = sum(selections)
    return max(selections) * len(selections) / total if total else None


def _by_expert(series: Series, name: str) -> dict[int, list[float]]:
    """The values by layer, [experts] each; 0 for an expert that is not exported."""
    values = {(int(layer), int(expert)): v for (layer, expert), v in series.by(name, "layer", "expert").items()}
    sizes: dict[int, int] = {}
    for layer, expert in values:
        sizes[layer] = max(sizes.get(layer, 0), expert + 1)
    return {layer: [values.get((layer, expert), 0.0) for expert in range(size)] for layer, size in sizes.items()}


def _by_layer(series: Series, name: str) -> dict[int, float]:
    return {int(layer): value for (layer,), value in series.by(name, "layer").items()}


def _by_route(series: Series) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for (layer, route), selections in series.by(names.SELECTIONS, "layer", "route").items():
        found.setdefault(int(layer), dict.fromkeys(ROUTES, 0.0))[route] = selections
    return found
