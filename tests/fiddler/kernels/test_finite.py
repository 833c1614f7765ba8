"""Whether all values are finite, by the native library and without it."""

import pytest
import torch

from fiddler.kernels import finite
from fiddler.kernels.native import NativeUnavailableError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["native", "without it"], autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native":
        try:
            assert finite._native_number(torch.zeros(1)) is not None
        except NativeUnavailableError:
            pytest.skip("the native library was not built")
    else:
        monkeypatch.setattr(finite, "_native_number", lambda tensor: None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_smallest_values_are_finite(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    values = [limits.max, limits.min, limits.tiny, -limits.tiny / 2, 0.0, -0.0]
    assert finite.all_finite(torch.tensor(values, dtype=dtype))
    assert finite.all_finite(torch.zeros(3, 0, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 31, 66])
def test_one_value_that_is_not_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    values = torch.ones(1, 67, dtype=dtype)
    values[0, place] = value
    assert not finite.all_finite(values)
    assert not finite.all_finite(values.expand(3, 67))
    assert finite.all_finite(values[:, place + 1 :])
