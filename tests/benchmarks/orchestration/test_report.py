from benchmarks.orchestration.report import Cell
from benchmarks.orchestration.simulate import Result
from benchmarks.orchestration.workloads import Workload
from tests.support.orchestrated import system


def _result(strategy: str, seconds: float, **spent: float) -> Result:
    return Result(strategy, [10 / seconds], 1.0, 0.5, 0.0, 10, seconds, spent)


def _cell(*results: Result) -> Cell:
    return Cell(system(), Workload("decode", "", lambda trace: []), 1.0, results)


def test_a_cell_in_which_ours_is_behind_names_the_rival_and_what_is_waited_for() -> None:
    slower = _result("ours", 4.0, gpu=1.0, hop=3.0)
    cell = _cell(slower, _result("ours_lru", 1.0), _result("fiddler", 2.0, gpu=2.0), _result("deepspeed", 3.0))
    assert cell.behind.startswith("0.50 of fiddler")
    assert "300 ms a token longer for messages" in cell.behind


def test_a_cell_in_which_ours_is_ahead_or_equal_says_nothing() -> None:
    assert _cell(_result("ours", 2.0), _result("fiddler", 2.0)).behind == ""


def test_the_share_of_the_bound_is_of_the_time() -> None:
    result = _result("ours", 4.0)
    assert _cell(result).share_of_bound(result) == 0.25
