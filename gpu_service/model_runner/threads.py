"""How many of PyTorch's threads compute; only one computes what is small, since waking the others takes longer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fiddler import cgroup

_FEW_VALUES = 2**18  # eight rows of a vocabulary of 32,000


def set_threads(num_threads: int) -> None:
    """Sets how many of PyTorch's threads compute.

    Args:
        num_threads: How many; 0 for PyTorch's own choice, within the CPU time that the control groups allow.
    """
    current = torch.get_num_threads()
    chosen = num_threads or cgroup.within_quota(current, cgroup.cpu_quota())
    if chosen != current:
        torch.set_num_threads(chosen)


@contextmanager
def as_few_as_pay(num_values: int, few: int = _FEW_VALUES) -> Iterator[None]:
    """Lets the calling thread compute alone if there are at most `few` values; see decisions 16 and 18.

    A thread that first uses PyTorch meanwhile keeps this number of threads for good. The threads of this service that
    may do so, such as those that answer /metrics, compute next to nothing.
    """
    before = torch.get_num_threads()
    if num_values > few or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
