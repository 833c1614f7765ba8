import pytest

from benchmarks.orchestration import machines, models
from benchmarks.orchestration.costs import MAX_ROWS, System
from tests.support.orchestrated import MACHINE, MODEL, system


@pytest.mark.parametrize("name", machines.names())
def test_every_figure_of_a_machine_has_a_source_and_is_no_more_than_its_peak(name: str) -> None:
    machine = machines.load(name)
    for figure, source in machines.sources(name):
        assert len(source) > 8
        assert getattr(machine, figure) > 0
    assert machine.gpu_budget_bytes <= machine.gpu_memory_bytes
    assert machine.pcie_bytes_per_second < machine.gpu_bytes_per_second


@pytest.mark.parametrize(
    ("name", "billions"), [("mixtral_8x7b", 46.7), ("qwen3_30b_a3b", 30.5), ("deepseek_v2_lite", 15.7)]
)
def test_models_have_as_many_parameters_as_published(name: str, billions: float) -> None:
    model = models.load(name)
    parameters = model.dense_bytes / 2 + model.moe_layers * model.experts * model.expert_parameters
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_an_expert_takes_as_long_as_its_bytes_and_then_as_its_rows() -> None:
    read = MODEL.expert_bytes / MACHINE.cpu_bytes_per_second
    row = 2 * MODEL.expert_parameters / MACHINE.cpu_flops
    assert system().cpu_seconds(0) == 0
    assert system().cpu_seconds(1) == system().cpu_seconds(10) == read
    assert system().cpu_seconds(100) == pytest.approx(100 * row)
    assert system().cpu_seconds(1, bandwidth_share=0.5) == 2 * read


def test_costs_never_fall_and_cover_the_longest_prompt() -> None:
    costs = system().costs
    for curve in (costs.cpu, costs.gpu):
        assert len(curve) == MAX_ROWS + 1
        assert curve[0] == 0
        assert list(curve) == sorted(curve)
    assert costs.transfer == MODEL.expert_bytes / MACHINE.pcie_bytes_per_second


def test_small_work_on_the_gpu_takes_as_long_as_its_launches() -> None:
    assert system().gpu_seconds(1000, rows=1, launches=8) == 8 * MACHINE.launch_seconds


def test_as_many_experts_fit_as_memory_is_left() -> None:
    mixtral = models.load("mixtral_8x7b")
    on_24_gigabytes = System(machines.load("quadro_rtx_6000"), mixtral).expert_slots
    # the paper's authors fit 56 without room for keys and values
    assert 50 <= on_24_gigabytes <= 56
    assert System(MACHINE, mixtral).expert_slots == 256
