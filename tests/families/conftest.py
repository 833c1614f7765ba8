"""Fixtures of the tests of families."""

from collections.abc import Iterator

import pytest
import torch

from cpu_expert_service.kernel import Kernel
from cpu_expert_service.native_kernel import NativeKernel
from tests.support.families.engine import best_kernel


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are so small that threads only wait for each other
    kernel = best_kernel()
    yield kernel
    if isinstance(kernel, NativeKernel):
        kernel.close()
    torch.set_num_threads(num_threads)
