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
        for layer, new in _selections(growth).items():
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
    selections = _selections(growth) if growth else {}
    band_sizes = _band_sizes(now)
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
                imbalance=(
                    _imbalance(selections[layer])
                    if layer in selections and layer not in band_sizes
                    else imbalance.get(layer)
                ),
                experts_per_band=band_sizes.get(layer, 1),
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


def hottest(now: Exposition, by_layer: Iterable[Layer]) -> list[HotExpert]:
    """The experts with the largest shares of their layers' selections, largest first.

    Of a service that exports no selections by expert, these are the shares that it counts itself.
    """
    found = [
        HotExpert(layer=int(layer), expert=int(expert), share=share, resident=None)
        for (layer, expert), share in now.by(names.HOT_EXPERT_SHARE, "layer", "expert").items()
    ]
    for layer in by_layer:
        if layer.experts_per_band > 1:
            continue
        total = sum(layer.selections or ())
        for expert, selections in enumerate(layer.selections or ()):
            if selections:
                resident = None if layer.resident is None else expert in layer.resident
                found.append(HotExpert(layer=layer.layer, expert=expert, share=selections / total, resident=resident))
    return sorted(found, key=lambda hot: (-hot.share, hot.layer, hot.expert))[:_NUM_HOTTEST]


def _imbalance(selections: Sequence[float]) -> float | None:
    total = sum(selections)
    return max(selections) * len(selections) / total if total else None


def _selections(series: Series) -> dict[int, list[float]]:
    """The selections by layer, [experts] each: of each expert, or else evenly divided among those of a band."""
    if each := _by_expert(series, names.SELECTIONS_BY_EXPERT):
        return each
    found: dict[int, list[float]] = {}
    for layer, counts in _by_band(series).items():
        in_order = sorted(counts, key=lambda band: band[0].start)
        found[layer] = [count / len(experts) for experts, count in in_order for _ in experts]
    return found


def _band_sizes(now: Exposition) -> dict[int, int]:
    """How many experts a band has, of the layers whose selections are known by band only."""
    if names.SELECTIONS_BY_EXPERT in now.series:
        return {}
    return {layer: max(len(experts) for experts, _ in counts) for layer, counts in _by_band(now).items()}


def _by_band(series: Series) -> dict[int, list[tuple[range, float]]]:
    found: dict[int, list[tuple[range, float]]] = {}
    for (layer, band), count in series.by(names.SELECTIONS_BY_BAND, "layer", "band").items():
        first, _, last = band.partition("-")
        found.setdefault(int(layer), []).append((range(int(first), int(last or first) + 1), count))
    return found


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
