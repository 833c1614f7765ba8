"""A CUDA device that is imitated on the CPU: what is right on a GPU only by luck goes wrong here every time.

    with imitated_cuda("late") as machine:
        ...                      # torch.device("cuda") can be used, in this thread and in those that are started here
        machine.counts.waits     # where the host waited for the device

A tensor on the device says that it is on "cuda". Its numbers are in a tensor on the CPU that only work in a stream's
queue reads or writes. What a program does to it is put into the queue of the current stream and is done as late, as
early or in as wrong an order as CUDA allows (`SCHEDULES`). Memory that is not initialised, or was freed, holds numbers
that nobody should read. Kernels, copies and waits of the host are counted with the place in the code that made them.

Not imitated: how fast anything is, how a GPU's kernels round, which kernel a library chooses, and its random numbers.
"""

from tests.support.imitated_cuda.installation import imitated_cuda
from tests.support.imitated_cuda.machine import MACHINE, Machine
from tests.support.imitated_cuda.schedules import SCHEDULES, Schedule
from tests.support.imitated_cuda.tensors import DEVICE

__all__ = ["DEVICE", "MACHINE", "SCHEDULES", "Machine", "Schedule", "imitated_cuda"]
