"""Triton's kernels on the imitated device: its interpreter computes them, when their turn in a stream comes."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.support.imitated_cuda.machine import MACHINE
from tests.support.imitated_cuda.nested import leaves
from tests.support.imitated_cuda.tensors import DeviceTensor, numbers_of


def interpret_triton() -> None:
    """Has kernels interpreted that are defined from now on; not beside a GPU, nor once Triton is imported."""
    if "triton" not in sys.modules and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@contextmanager
def imitated_launches() -> Iterator[None]:
    """Puts launches of kernels into the queue of the current stream."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def enqueued(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        tensors = [each for each in leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if not any(isinstance(each, DeviceTensor) for each in tensors):
            return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)
        for each in tensors:
            if not isinstance(each, DeviceTensor):  # as Triton says it
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        numbers, named = numbers_of(args), numbers_of(kwargs)
        with MACHINE.lock:
            MACHINE.counts.kernels[f"triton {kernel.__name__}"] += 1
            MACHINE.current_stream().enqueue(lambda: run(kernel, *numbers, grid=grid, warmup=warmup, **named))
        return None

    InterpretedFunction.run = enqueued
    try:
        yield
    finally:
        InterpretedFunction.run = run
