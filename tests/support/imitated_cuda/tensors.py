"""Tensors that say they are on the device, and what hands operations on them to the machine."""

from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.imitated_cuda.machine import MACHINE
from tests.support.imitated_cuda.memory import Block
from tests.support.imitated_cuda.nested import leaves, mapped

DEVICE: Final = torch.device("cuda", 0)


class DeviceTensor(torch.Tensor):
    """A tensor on the device."""

    numbers: torch.Tensor
    """On the CPU; for work in a stream's queue only."""
    block: Block
    """The memory that it shares with its views."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, block: Block) -> "DeviceTensor":
        # outside of inference mode, so that a view made in it and its base, made before, are of one kind
        with torch.inference_mode(False):
            made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                numbers.size(),
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                layout=numbers.layout,
                device=DEVICE,
                requires_grad=False,
            )
        made.numbers, made.block = numbers, block
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.clone()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"


class DeviceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is made on the device, and pinned memory. One for each thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(each, DeviceTensor) or is_cuda(each) for each in leaves((args, kwargs))):
            return _compute(func, args, kwargs)
        if kwargs.get("pin_memory"):
            with MACHINE.lock:
                return MACHINE.memory.pin(func(*args, **(kwargs | {"pin_memory": False})))
        return func(*args, **kwargs)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    from tests.support.imitated_cuda.operations import compute

    with MACHINE.lock:
        return compute(func, args, kwargs)


def is_cuda(value: Any) -> bool:
    """Whether this names the device."""
    return isinstance(value, torch.device) and value.type == "cuda"


def numbers_of(values: Any) -> Any:
    """Nested values with the CPU's tensors in the place of the device's."""
    return mapped(lambda each: each.numbers if isinstance(each, DeviceTensor) else each, values)


def on_device(values: Any, block: Block | None = None) -> Any:
    """Nested values with new tensors of the device around the CPU's: views of a block, or with memory of their own."""

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, DeviceTensor):
            return value
        return DeviceTensor(value, MACHINE.memory.block_of(value) if block is None else block)

    return mapped(wrap, values)
