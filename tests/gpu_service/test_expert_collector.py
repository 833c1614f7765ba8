"""Which series of experts are published, by how many experts there are, and that none of a layer is missing."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.core import Metric

from gpu_service import expert_collector
from gpu_service.expert_collector import ByExpert, RoutingCollector, bands
from gpu_service.moe.counters import SelectionCounts

NAMES = {
    "by expert": "fiddler_expert_selections_by_expert",
    "resident": "fiddler_expert_resident",
    "by band": "fiddler_expert_selections_by_band",
    "resident by band": "fiddler_expert_band_resident_ratio",
    "hottest": "fiddler_hot_expert_selections_ratio",
}


def collected(num_experts: Sequence[int], by_expert: ByExpert, counts: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
    """The metrics of a model whose expert 1 is resident in each layer, by name."""
    layers = [SimpleNamespace(num_experts=count, decoder_layer=number + 1) for number, count in enumerate(num_experts)]
    selections = SelectionCounts(num_experts)
    for layer, chosen in enumerate(counts):
        selections.add(layer, np.array(chosen), sum(chosen))
    dispatcher: Any = SimpleNamespace(
        selections=selections, orchestration=SimpleNamespace(resident=lambda layer: {1}, num_slots=3)
    )
    checkpoint: Any = SimpleNamespace(layers=layers)
    return {family.name: family for family in RoutingCollector(dispatcher, checkpoint, by_expert).collect()}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@pytest.mark.parametrize(
    ("by_expert", "num_experts", "expected"),
    [
        ("auto", [128] * 48, {"by expert": 6144, "resident": 6144, "by band": 1536, "resident by band": 1536}),
        ("auto", [10_000] * 2, {"by expert": 20_000, "resident": 20_000, "by band": 64, "resident by band": 64}),
        ("auto", [10_001, 10_000], {"by band": 64, "resident by band": 64, "hottest": 0}),
        ("on", [10_001, 10_000], {"by expert": 20_001, "resident": 20_001, "by band": 64, "resident by band": 64}),
        ("off", [8] * 2, {}),
    ],
)
def test_experts_are_named_up_to_twenty_thousand_pairs(
    by_expert: ByExpert, num_experts: list[int], expected: dict[str, int]
) -> None:
    found = collected(num_experts, by_expert)
    assert {what: len(found[name].samples) for what, name in NAMES.items() if name in found} == expected
    assert len(found["fiddler_expert_selections"].samples) == len(num_experts) * 3
    assert len(found["fiddler_resident_experts"].samples) == len(num_experts)


def test_each_expert_has_its_own_count_and_flag() -> None:
    found = collected([2, 3], "auto", [[4, 5], [6, 0, 7]])
    assert values(found[NAMES["by expert"]]) == {
        ("1", "0"): 4, ("1", "1"): 5, ("2", "0"): 6, ("2", "1"): 0, ("2", "2"): 7
    }  # fmt: skip
    assert [value for (_, expert), value in values(found[NAMES["resident"]]).items() if expert != "1"] == [0, 0, 0]
    assert values(found[NAMES["resident"]])["2", "1"] == 1


def test_beyond_the_limit_bands_count_all_experts_and_the_hottest_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_collector, "MOST_PAIRS", 10)
    counts = [expert % 50 for expert in range(100)]
    found = collected([100], "auto", [counts])
    by_band = values(found[NAMES["by band"]])
    assert sum(by_band.values()) == sum(counts)
    assert by_band["1", "04-07"] == 4 + 5 + 6 + 7
    assert values(found[NAMES["resident by band"]])["1", "00-03"] == 0.25
    shares = values(found[NAMES["hottest"]])
    assert set(shares) == {("1", str(expert)) for expert in (46, 47, 48, 49, 96, 97, 98, 99)}
    assert shares["1", "49"] == pytest.approx(49 / sum(counts))


@pytest.mark.parametrize(
    ("num_experts", "num_bands", "first", "last"),
    [
        (1, 1, "0", "0"),
        (8, 8, "0", "7"),
        (32, 32, "00", "31"),
        (33, 17, "00-01", "32"),
        (128, 32, "000-003", "124-127"),
        (384, 32, "000-011", "372-383"),
    ],
)
def test_bands_cover_all_experts_once_and_sort_as_numbers(
    num_experts: int, num_bands: int, first: str, last: str
) -> None:
    found = bands(num_experts)
    assert (len(found), found[0][0], found[-1][0]) == (num_bands, first, last)
    assert [expert for _, experts in found for expert in experts] == list(range(num_experts))
    assert sorted(name for name, _ in found) == [name for name, _ in found]
