"""What the benchmark of quality adds up, and a whole small run of it."""

import json
import math
from pathlib import Path

import pytest
import torch
import typer

from benchmarks.quality import __main__ as quality
from benchmarks.quality.divergence import Divergence

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "quality.jsonl"


def _logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_the_figures_are_those_of_their_definitions() -> None:
    divergence = Divergence()
    reference = _logs([0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8])
    other = _logs([0.25, 0.5, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8])
    divergence.add(torch.tensor([0, 1, 2]), reference, other)
    divergence.add(torch.tensor([0, 1, 2]), reference, reference)
    of_first = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert divergence.kl_divergence == pytest.approx(of_first / 6)
    assert divergence.same_top_token == pytest.approx(5 / 6)
    # of four next tokens one is twice as probable to the other model
    assert divergence.perplexity_ratio == pytest.approx(2 ** (-1 / 4))
    assert divergence.num_tokens == 6


def test_a_text_is_cut_into_whole_windows() -> None:
    assert quality._windows(list(range(10)), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(typer.BadParameter, match="the text has 3 tokens, and a window 4"):
        quality._windows([1, 2, 3], 4)


def test_a_small_run_measures_every_format(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("It was a fine morning in the country, and the weather was all that could be wished. " * 4)
    quality.main(out=tmp_path / "out.jsonl", text=text, windows=1, quick=True)
    found = {line["name"]: line.get("value") for line in map(json.loads, (tmp_path / "out.jsonl").open())}
    committed = {json.loads(line)["name"] for line in RESULTS.open()}
    assert found.keys() == committed
    for name in ("int8", "int4"):
        assert 0 < found[f"quality.demo.{name}.kl_divergence"] < 0.1
    assert found["quality.demo.int8.kl_divergence"] < found["quality.demo.int4.kl_divergence"]
