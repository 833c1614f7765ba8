"""Which kernel an AutoKernel uses, by what calibration measured."""

from collections.abc import Iterator

import pytest
import torch
from prometheus_client import REGISTRY

from cpu_expert_service import calibration
from cpu_expert_service.calibration import Timing, crossing
from cpu_expert_service.kernel import LayerFunction, PyTorchKernel
from cpu_expert_service.kernel_choice import AutoKernel, calibrate
from cpu_expert_service.native_kernel import NativeKernel
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import NativeUnavailableError, Pool

LAYER = LayerWeights(
    tuple(ExpertWeights(torch.ones(16, 8), torch.ones(16, 8), torch.ones(8, 16)) for _ in "ab"), "relu"
)


@pytest.fixture(scope="module")
def kernel() -> Iterator[AutoKernel]:
    threads = torch.get_num_threads()
    try:
        kernel = AutoKernel(NativeKernel(Pool([0]), "scalar"), PyTorchKernel(1))
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    yield kernel
    kernel.close()
    torch.set_num_threads(threads)


def pretend(monkeypatch: pytest.MonkeyPatch, native_seconds: dict[int, float]) -> None:
    """Has PyTorch take a second for any number of rows, and the native kernel these seconds, or else 1.5."""

    def time_kernel(name: str, _: LayerFunction, *, layer: LayerWeights, rows: int, **rest: object) -> Timing:
        assert len(layer.experts) == 2
        return Timing(name, rows, 1.0 if name == "pytorch" else native_seconds.get(rows, 1.5))

    monkeypatch.setattr(calibration, "time_kernel", time_kernel)


@pytest.mark.parametrize(
    ("faster", "expected"),
    [((8, 16, 32, 128, 512), None), ((8, 16, 32), 128), ((8,), 16), ((), 8), ((8, 32), 128)],
)
def test_pytorch_computes_from_where_it_is_faster_at_all_larger_sizes(
    kernel: AutoKernel, monkeypatch: pytest.MonkeyPatch, faster: tuple[int, ...], expected: int | None
) -> None:
    pretend(monkeypatch, dict.fromkeys(faster, 0.5))
    timings = kernel.calibrate(LAYER, torch.float32)
    assert {timing.rows for timing in timings} == {8, 16, 32, 128, 512}
    assert kernel.pytorch_from_rows == expected


@pytest.mark.parametrize(("reading_alone", "limit"), [(2.0, 3.0), (4.0, 4.0)])
def test_the_limit_of_reading_is_not_below_what_the_kernel_reads(
    kernel: AutoKernel, monkeypatch: pytest.MonkeyPatch, reading_alone: float, limit: float
) -> None:
    pretend(monkeypatch, {1: LAYER.experts[0].nbytes / 3.0})
    monkeypatch.setattr(calibration, "read_bytes_per_second", lambda pool, layers: reading_alone)
    calibrate(kernel, [LAYER], torch.float32)
    assert REGISTRY.get_sample_value("fiddler_expert_kernel_read_bytes_per_second") == pytest.approx(3.0)
    assert REGISTRY.get_sample_value("fiddler_expert_memory_read_bytes_per_second") == pytest.approx(limit)


def test_few_rows_are_native_and_many_are_not(kernel: AutoKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def remember(name: str) -> LayerFunction:
        def compute(hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
            chosen.append(name)
            return hidden

        return compute

    monkeypatch.setattr(kernel.native, "prepare", lambda layer: remember("native"))
    monkeypatch.setattr(PyTorchKernel, "prepare", lambda self, layer: remember("pytorch"))
    compute = kernel.prepare(LAYER)
    kernel.pytorch_from_rows = 8
    for rows in (1, 15, 16, 40):
        compute(torch.zeros(rows, 8), torch.zeros(rows, 1, dtype=torch.int32), torch.ones(rows, 1))
    assert chosen == ["native", "native", "pytorch", "pytorch"]


def test_a_kernel_that_is_never_faster_has_no_crossing() -> None:
    assert crossing((1, 2), lambda rows: 1.0, lambda rows: 1.0) is None
