import pytest
import torch

from gpu_service.model_runner.threads import as_few_as_pay

pytestmark = pytest.mark.usefixtures("two_threads")


def test_what_is_small_is_computed_alone_and_what_is_large_is_not() -> None:
    with as_few_as_pay(8 * 32_000):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with as_few_as_pay(8 * 152_000):
        assert torch.get_num_threads() == 2


def test_whatever_happens_the_others_compute_again() -> None:
    with pytest.raises(ValueError, match="broken"), as_few_as_pay(1):
        raise ValueError("broken")
    assert torch.get_num_threads() == 2
