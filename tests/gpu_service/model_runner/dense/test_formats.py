from collections.abc import Callable

import pytest
import torch

from fiddler.convert.recipe import DenseFormat
from gpu_service.model_runner.dense import formats
from gpu_service.model_runner.dense.formats import PLAIN, DensePlan

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
INT4 = DensePlan(keeps=True, codes_in="int4")
KEEPS, INT8 = DensePlan(keeps=True, codes_in=None), DensePlan(keeps=True, codes_in="int8")


@pytest.mark.parametrize(
    ("asked", "device", "has_kernel", "plan"),
    [
        ("auto", CPU, True, KEEPS),
        ("auto", CPU, False, PLAIN),  # PyTorch would decode a matrix for each product
        ("auto", CUDA, True, PLAIN),
        ("bfloat16", CPU, True, PLAIN),
        ("int8", CPU, False, INT8),
        ("int8", CUDA, True, INT8),
        ("int4", CPU, False, INT4),
        ("int4", CUDA, True, INT4),
    ],
)
def test_the_plan_for_a_device(
    asked: DenseFormat,
    device: torch.device,
    has_kernel: bool,
    plan: DensePlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel: Callable[[int], object] = lambda num_threads: object() if has_kernel else None  # noqa: E731
    monkeypatch.setattr(formats, "shared_kernel", kernel)
    assert DensePlan.resolve(asked, device) == plan


@pytest.mark.parametrize(
    ("plan", "inputs", "stored_bits", "kind"),
    [
        (KEEPS, 64, None, None),
        (INT8, 64, None, "int8"),
        (INT8, 64, 8, None),
        (INT8, 64, 4, None),
        (INT4, 64, None, "int4"),
        (INT4, 64, 8, "int4"),  # asked for to have fewer bytes
        (INT4, 64, 4, None),
        (INT4, 48, None, "int8"),
        (INT4, 48, 8, None),
    ],
)
def test_what_a_layer_is_coded_in(plan: DensePlan, inputs: int, stored_bits: int | None, kind: str | None) -> None:
    assert plan.coded_in(inputs, stored_bits) == kind
