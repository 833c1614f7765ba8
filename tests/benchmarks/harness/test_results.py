"""Result files: what is in them, what an interrupted run leaves, and how a result is judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.results import report
from benchmarks.harness.targets import Judge, Target, judge, resampled_medians


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_has_the_machine_first_and_a_line_for_each_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    with report(path, append=False) as results:
        results.samples("a.case.time", [3.0, 1.0, 2.00000049], "ms", rows=4)
        results.record("a.subject", files=2)
    machine, samples, record = _lines(path)
    assert machine["name"] == "machine"
    assert machine["cores"] > 0
    spread = {"median": 2.0, "min": 1.0, "max": 3.0, "p10": 1.0, "p90": 3.0}
    assert samples == {"name": "a.case.time", "value": 2.0, "unit": "ms", "n": 3, **spread, "rows": 4}
    assert record == {"name": "a.subject", "files": 2}
    assert capsys.readouterr().out == path.read_text()


def test_without_a_file_results_are_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with report(None, append=False) as results:
        results.record("a.subject", files=2)
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["machine", "a.subject"]


def test_an_interrupted_run_leaves_the_file_of_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("of the last run\n")

    def interrupted() -> None:
        with report(path, append=False) as results:
            results.record("a.subject", files=2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "of the last run\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("append", [False, True])
def test_a_file_is_replaced_unless_it_is_appended_to(append: bool, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for number in range(2):
        with report(path, append) as results:
            results.record("part", number=number)
    assert [line["number"] for line in _lines(path) if line["name"] == "part"] == ([0, 1] if append else [1])


@pytest.mark.parametrize(
    ("values", "target", "verdict"),
    [
        ([2.0, 2.1, 2.2], Target(1.5), "ok"),
        ([2.0, 2.1, 2.2], Target(2.1), "inconclusive"),
        ([1.0, 1.1, 1.2], Target(2.0), "missed"),
        ([1.0, 1.1, 1.2], Target(2.0, at_least=False), "ok"),
        ([3.0, 3.0, 3.0], Target(2.0, at_least=False), "missed"),
        ([1.0, 2.2, 4.0], Target(2.0), "inconclusive"),
    ],
)
def test_a_spread_that_is_wider_than_the_distance_to_the_target_decides_nothing(
    values: list[float], target: Target, verdict: str
) -> None:
    assert judge(values, target) == verdict


def test_a_result_with_a_target_has_its_verdict_and_others_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    with report(path, append=False) as results:
        judged = Judge(results, {"a.speedup": Target(1.5)})
        judged.samples("a.speedup", [2.0, 2.0], "ratio")
        judged.samples("a.time", [1.0], "s")
        judged.summarise()
    _, speedup, time = _lines(path)
    assert (speedup["at_least"], speedup["verdict"], speedup["median_is"]) == (1.5, "ok", "meets")
    assert "verdict" not in time
    assert "a.speedup" in capsys.readouterr().err


def test_many_samples_that_vary_are_judged_by_how_far_their_median_does(tmp_path: Path) -> None:
    values = [0.5 + 0.01 * number for number in range(-30, 31)]
    medians = resampled_medians(values)
    assert max(medians) - min(medians) < (max(values) - min(values)) / 2
    with report(path := tmp_path / "out.jsonl", append=False) as results:
        judge_ = Judge(results, {"a.b.c": Target(0.7, at_least=False)})
        judge_.samples("a.b.c", values, "ratio")
        judge_.median_of_samples("a.b.c", values, "ratio")
    by_samples, by_median = _lines(path)[1:]
    assert (by_samples["verdict"], by_median["verdict"]) == ("inconclusive", "ok")
    assert (by_samples["p10"], by_samples["p90"]) == (by_median["p10"], by_median["p90"])
    assert by_samples["p10"] < by_median["median_p10"] <= 0.5 <= by_median["median_p90"] < by_samples["p90"]


def test_medians_of_few_samples_are_as_wide_as_these() -> None:
    assert set(resampled_medians([1.0, 2.0])) == {1.0, 1.5, 2.0}
