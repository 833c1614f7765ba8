"""What benchmarks.metrics measures of models with many experts, without running a pair."""

import json
from pathlib import Path

import pytest
import typer

from benchmarks.metrics import many_experts
from benchmarks.metrics.__main__ import TARGETS, _known, main


def test_models_are_checked_before_anything_runs() -> None:
    assert _known("demo,series") == "demo,series"
    with pytest.raises(typer.BadParameter, match=r"^qwen3: known are demo, mixtral_2_layers, qwen3_form, series$"):
        _known("demo,qwen3")


def test_the_series_of_each_form_are_measured_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without a Prometheus
    monkeypatch.setattr(many_experts, "FORMS", {"qwen3_30b_a3b": (4, 128)})
    out = tmp_path / "results.jsonl"
    main(out=out, rounds=2, models="series")
    machine, *results = map(json.loads, out.read_text().splitlines())
    assert machine["name"] == "machine"
    values = {result["name"].removeprefix("metrics.qwen3_30b_a3b."): result["value"] for result in results}
    assert set(values) == {"format", "series", "scrape_compressed", "prepared_lines"}
    assert values["series"] > 2 * 4 * 128
    assert 0 < values["format"] < 1
    assert values["scrape_compressed"] > 1000


def test_only_the_shares_of_real_steps_have_a_target() -> None:
    assert {name for name in TARGETS if name.endswith("counting_over_step")} == {
        "metrics.demo.counting_over_step",
        "metrics.mixtral_2_layers.counting_over_step",
    }
