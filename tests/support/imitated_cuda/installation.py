"""Puts the imitation in the place of torch.cuda for a while."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tests.support.imitated_cuda.graphs import Graph
from tests.support.imitated_cuda.guard import install_guard
from tests.support.imitated_cuda.machine import MACHINE, Machine
from tests.support.imitated_cuda.schedules import Schedule
from tests.support.imitated_cuda.streams import Event, Stream
from tests.support.imitated_cuda.tensors import DEVICE, DeviceMode
from tests.support.imitated_cuda.triton_kernels import imitated_launches, interpret_triton

_GIB = 2**30
_REAL_GENERATOR = torch.Generator


class _Generator(torch.Generator):
    """A generator of the CPU in the place of the device's, whose random numbers are not imitated."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return _REAL_GENERATOR.__new__(cls, "cpu")  # type: ignore[call-arg]


@contextmanager
def imitated_cuda(schedule: Schedule = "eager", *, seed: int = 0, memory_bytes: int = 16 * _GIB) -> Iterator[Machine]:
    """A device "cuda", in this thread and in those that are started within the `with` block.

    Args:
        schedule: How soon the device does what is enqueued.
        seed: Of the schedule "random".
        memory_bytes: The device's memory.
    """
    interpret_triton()
    install_guard()
    MACHINE.reset(schedule, seed=seed, memory_bytes=memory_bytes)
    with ExitStack() as undone:
        for owner, name, value in _replacements(MACHINE):
            undone.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        undone.enter_context(_conversion_of_parameters())
        undone.enter_context(imitated_launches())
        undone.enter_context(_seen_by_mode())
        yield MACHINE
        MACHINE.synchronize()


def _replacements(machine: Machine) -> list[tuple[Any, str, Any]]:
    cuda, memory = torch.cuda, machine.memory
    run = threading.Thread.run

    def run_seen(thread: threading.Thread) -> None:
        with _seen_by_mode():
            run(thread)

    def synchronize(device: Any = None) -> None:
        machine.wait("the device is synchronized")
        machine.synchronize()

    return [
        (torch, "Generator", _Generator),
        (threading.Thread, "run", run_seen),
        (cuda, "_lazy_init", lambda: None),
        (cuda, "is_available", lambda: True),
        (cuda, "device_count", lambda: 1),
        (cuda, "current_device", lambda: 0),
        (cuda, "get_device_capability", lambda device=None: (9, 0)),
        (cuda, "get_device_name", lambda device=None: "imitated device"),
        (cuda, "Stream", Stream),
        (cuda, "Event", Event),
        (cuda, "CUDAGraph", Graph),
        (cuda, "graph_pool_handle", lambda: (0, 0)),
        (cuda, "is_current_stream_capturing", lambda: machine.is_capturing),
        (cuda, "current_stream", lambda device=None: machine.current_stream()),
        (cuda, "stream", machine.use_stream),
        (cuda, "synchronize", synchronize),
        (cuda, "empty_cache", lambda: None),
        (cuda, "mem_get_info", memory.info),
        (cuda, "memory_allocated", lambda device=None: memory.taken_bytes),
        (cuda, "max_memory_allocated", lambda device=None: memory.peak_bytes),
        (cuda, "reset_peak_memory_stats", memory.reset_peak),
    ]


@contextmanager
def _conversion_of_parameters() -> Iterator[None]:
    """Lets `module.to` replace parameters: one that is on the CPU cannot become another class in place."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def _seen_by_mode() -> Iterator[None]:
    """Shows the mode all that this thread makes, also torch.tensor(numbers, device="cuda")."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with DeviceMode():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


__all__ = ["DEVICE", "imitated_cuda"]
