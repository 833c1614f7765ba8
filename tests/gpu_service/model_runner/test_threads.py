import pytest
import torch

from fiddler import cgroup
from gpu_service.model_runner.threads import as_few_as_pay, set_threads

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


@pytest.mark.parametrize(
    ("wanted", "quota", "expected"),
    [(0, 1.5, 1), (0, 0.5, 1), (0, 3.0, 2), (0, float("inf"), 2), (2, 1.0, 2), (1, 9.0, 1)],
)
def test_threads_are_as_many_as_asked_for_or_as_the_quota_pays_for(
    monkeypatch: pytest.MonkeyPatch, wanted: int, quota: float, expected: int
) -> None:
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    set_threads(wanted)
    assert torch.get_num_threads() == expected
