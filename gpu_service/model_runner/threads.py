"""How many of PyTorch's threads compute what is small: one, since to wake the others takes longer than they save."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FEW_VALUES = 2**18  # eight rows of a vocabulary of 32,000


@contextmanager
def as_few_as_pay(num_values: int, few: int = _FEW_VALUES) -> Iterator[None]:
    """Has the calling thread compute alone what is made of no more values than `few`; see decisions 16 and 18.

    A thread that begins to use PyTorch meanwhile takes over the number for good. Those of this service that may, such
    as those that answer /metrics, compute next to nothing.
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
