from collections.abc import Callable

import pytest
import torch

from gpu_service.model_runner.dense import formats
from gpu_service.model_runner.dense.formats import PLAIN, DensePlan

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
KEEPS, INT8 = DensePlan(keeps=True, quantizes=False), DensePlan(keeps=True, quantizes=True)


@pytest.mark.parametrize(
    ("asked", "device", "has_kernel", "plan"),
    [
        ("auto", CPU, True, KEEPS),
        ("auto", CPU, False, PLAIN),  # PyTorch would decode a matrix for each product
        ("auto", CUDA, True, PLAIN),
        ("bfloat16", CPU, True, PLAIN),
        ("int8", CPU, False, INT8),
        ("int8", CUDA, True, INT8),
    ],
)
def test_the_plan_for_a_device(
    asked: formats.DenseFormat,
    device: torch.device,
    has_kernel: bool,
    plan: DensePlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel: Callable[[int], object] = lambda num_threads: object() if has_kernel else None  # noqa: E731
    monkeypatch.setattr(formats, "shared_kernel", kernel)
    assert DensePlan.resolve(asked, device) == plan
