"""What the device does for each of PyTorch's operations: a view, a kernel, a copy, or a wait of the host."""

import functools
from itertools import islice
from typing import Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.imitated_cuda.machine import MACHINE
from tests.support.imitated_cuda.memory import uninitialised
from tests.support.imitated_cuda.nested import leaves, mapped
from tests.support.imitated_cuda.tensors import DeviceMode, DeviceTensor, is_cuda, numbers_of, on_device
from tests.support.imitated_cuda.transfers import copy_into, copy_of

aten: Final = torch.ops.aten
_EMPTY: Final = (aten.empty.memory_format, aten.empty_strided.default)
_READ_BY_HOST: Final = (aten._local_scalar_dense.default, aten.equal.default)
_VIEWS: Final = (aten._unsafe_view.default, aten._reshape_alias.default)
"""Views that their schema does not call so."""
_MAY_INDEX_FROM_HOST: Final = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
_WITH_RESULT_DTYPE: Final = {
    aten.mm.dtype: aten.mm.default,
    aten.bmm.dtype: aten.bmm.default,
    aten.bmm.dtype_out: aten.bmm.out,
}
"""Products whose result has another dtype than their factors. CUDA has them, the CPU has not."""
_MEANINGFUL_RESULTS: Final = {aten._embedding_bag_forward_only.default: 1}
"""Of operations whose other results are for a backward pass, and of no certain size."""
_forms: dict[Any, Any] = {}
"""Sizes, strides and dtypes of results, by operation and arguments: finding them out takes longer than computing."""


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Gives an operation to the device, or does it if it is about no numbers."""
    if func is aten._to_copy.default:
        if isinstance(args[0], DeviceTensor) and (kwargs.get("device") is None or is_cuda(kwargs["device"])):
            return _kernel(func, args, kwargs)
        return copy_of(args[0], **kwargs)
    if func is aten.copy_.default and not all(isinstance(each, DeviceTensor) for each in args[:2]):
        return copy_into(*args, **kwargs)
    if func in _READ_BY_HOST:
        return _read(func, args, kwargs, why=f"{func} gives the host a number")
    if func not in _WITH_RESULT_DTYPE:
        with DeviceMode():  # type: ignore[no-untyped-call] # in inference mode, operations that are made of others arrive whole
            made = func.decompose(*args, **kwargs) if _can_decompose(func) else NotImplemented
        if made is not NotImplemented:
            return made
    tensors = [each for each in leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    on_gpu = [each for each in tensors if isinstance(each, DeviceTensor)]
    if not on_gpu:
        return _made(func, args, kwargs)
    _check_devices(func, [each for each in tensors if not isinstance(each, DeviceTensor)])
    written = [argument for argument in enumerate(func._schema.arguments) if _is_written(argument[1])]
    if func in _VIEWS or (_returns_alias(func) and not written):
        with _disable_current_modes():
            return on_device(func(*numbers_of(args), **numbers_of(kwargs)), on_gpu[0].block)
    if not written:
        return _kernel(func, args, kwargs)
    _launch(func, args, kwargs, into=None)
    targets = tuple(args[index] if index < len(args) else kwargs[argument.name] for index, argument in written)
    return None if not func._schema.returns else targets[0] if len(func._schema.returns) == 1 else targets


@functools.cache
def _can_decompose(func: Any) -> bool:
    return bool(func._can_decompose())


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _returns_alias(func: Any) -> bool:
    return bool(func._schema.returns) and func._schema.returns[0].alias_info is not None


def _check_devices(func: Any, on_cpu: list[torch.Tensor]) -> None:
    if not any(each.dim() for each in on_cpu):  # a single number may come from anywhere
        return
    if func in _MAY_INDEX_FROM_HOST:
        MACHINE.wait(f"{func} copies an index from the host")
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
    )


def _kernel(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Enqueues an operation with results of their own."""
    if MACHINE.is_eager:
        MACHINE.counts.kernels[str(func)] += 1
        MACHINE.current_stream().advance_to_end()
        with _disable_current_modes():
            return on_device(_results(func, numbers_of(args), _on_cpu(numbers_of(kwargs))))
    forms = _forms_of(func, args, kwargs)
    if forms is None:
        return _read(func, args, kwargs, why=f"{func} has a size that depends on numbers")
    with _disable_current_modes():
        results = mapped(_memory_of, forms, whole=_Shape)
    there = on_device(results)  # takes memory before anything is enqueued
    _launch(func, args, kwargs, into=results)
    return there


def _launch(func: Any, args: Any, kwargs: dict[str, Any], into: Any) -> None:
    numbers, named = numbers_of(args), _on_cpu(numbers_of(kwargs))
    MACHINE.counts.kernels[str(func)] += 1

    def run() -> None:
        results = _results(func, numbers, named)
        if into is not None:
            pairs = zip(leaves(into), leaves(results), strict=True)
            for target, result in islice(pairs, _MEANINGFUL_RESULTS.get(func)):
                if isinstance(target, torch.Tensor):
                    target.copy_(result)

    MACHINE.current_stream().enqueue(run)


def _results(func: Any, numbers: Any, named: dict[str, Any]) -> Any:
    if func in _WITH_RESULT_DTYPE:
        return _WITH_RESULT_DTYPE[func](numbers[0].to(numbers[2]), numbers[1].to(numbers[2]), **named)
    return func(*numbers, **named)


def _read(func: Any, args: Any, kwargs: dict[str, Any], *, why: str) -> Any:
    """Does everything that is enqueued, and the operation."""
    MACHINE.wait(why)
    MACHINE.current_stream().advance_to_end()
    with _disable_current_modes():
        return on_device(func(*numbers_of(args), **_on_cpu(numbers_of(kwargs))))


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Makes a tensor on the device of no other."""
    if func in _EMPTY:
        with _disable_current_modes():
            form = func(*args, **_on(kwargs, "meta"))
            return on_device(uninitialised(form.size(), form.stride(), form.dtype))
    MACHINE.counts.kernels[str(func)] += 1
    with _disable_current_modes():
        made = func(*args, **_on_cpu(kwargs))
        held = made.clone() if MACHINE.is_capturing else None
    if held is not None:
        MACHINE.current_stream().enqueue(lambda: made.copy_(held))
    return on_device(made)


class _Shape(tuple[Any, ...]):
    """A result's size, stride and dtype."""


def _memory_of(form: Any) -> Any:
    return uninitialised(*form) if isinstance(form, _Shape) else form


def _forms_of(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The forms of an operation's results; None if they depend on numbers."""
    key = (func, tuple(_key_of(each) for each in leaves((args, kwargs))))
    if key not in _forms:
        try:
            with _disable_current_modes():
                metas = _results(func, mapped(_meta, args), _on(mapped(_meta, kwargs), "meta"))
        except Exception:  # PyTorch has no one error for this
            return None
        _forms[key] = mapped(
            lambda each: _Shape((each.size(), each.stride(), each.dtype)) if isinstance(each, torch.Tensor) else each,
            metas,
        )
    return _forms[key]


def _key_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.size(), value.stride(), value.dtype, isinstance(value, DeviceTensor)
    return type(value), value if value.__hash__ else str(value)


def _meta(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or (value.dim() == 0 and not isinstance(value, DeviceTensor)):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def _on(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    """Named arguments as for another device."""
    moved = {"device": torch.device(device), "pin_memory": False}
    return {name: moved[name] if name in moved and value is not None else value for name, value in kwargs.items()}


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return _on(kwargs, "cpu")
