"""Gives every row of a forward the angles that its own sequence has.

transformers' rotary embeddings take the type of their angles from the longest position that they are called with, and
keep it. They are called here with the rows of one kind at a time, and with one position more, the last of the sequence.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from gpu_service.model_runner.rope_angles import RopeAngles


class RowAngles:
    """Makes a model's rotary embeddings use the length of each row's sequence."""

    def __init__(self, module: nn.Module, angles: RopeAngles) -> None:
        """Changes the module's rotary embeddings, if angles depend on length.

        Args:
            module: transformers' model.
            angles: Which lengths have the same angles.
        """
        self._angles = angles
        self._lengths: Sequence[int] = ()
        self._is_packed = False
        if angles.depend_on_length:
            for each in list(module.modules()):
                if _kinds(each) - {"default", "axial"}:
                    self._replace(each)

    def begin(self, lengths: Sequence[int] = (), *, is_packed: bool = False) -> None:
        """Sets the length of each row's sequence for the next forward; see `RopeAngles.of`.

        Without lengths, the longest position of a forward counts, as it does to transformers.

        Args:
            lengths: Of each row's sequence.
            is_packed: Whether the forward has one row of several sequences; then `lengths` has one for each token.
        """
        self._lengths = lengths
        self._is_packed = is_packed

    def _replace(self, rotary: Any) -> None:
        original = rotary.forward
        grows = self._angles.grows_beyond is not None

        def forward(x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **named: Any) -> Any:
            def angles_at(positions: torch.Tensor) -> Any:
                if grows:
                    original(x, torch.zeros_like(position_ids), *more, **named)  # makes it forget longer positions
                return original(x, positions, *more, **named)

            if not self._lengths:
                return angles_at(position_ids)
            outputs, order = [], []
            for places, length in self._groups(position_ids.shape[-1 if self._is_packed else -2]):
                own = position_ids[..., places] if self._is_packed else position_ids[..., places, :]
                last = own.new_full((*own.shape[:-1], 1), length - 1)
                outputs.append(_without_last(angles_at(torch.cat([own, last], -1))))
                order += places
            return outputs[0] if len(outputs) == 1 else _in_order(outputs, order, -2 if self._is_packed else -3)

        rotary.forward = forward

    def _groups(self, num_rows: int) -> list[tuple[list[int], int]]:
        """(rows or packed tokens, the length of one of them), by equal angles."""
        lengths = self._lengths
        if num_rows != len(lengths):  # rows that model code repeats, all of one sequence
            return [(list(range(num_rows)), max(lengths))]
        rows = sorted(range(num_rows), key=lambda row: self._angles.of(lengths[row]))
        groups = [list(group) for _, group in groupby(rows, key=lambda row: self._angles.of(lengths[row]))]
        return [(group, lengths[group[0]]) for group in groups]


def keep_frequencies(module: nn.Module, device: torch.device) -> None:
    """Keeps on the device what rotary embeddings would compute anew from the configuration in each forward.

    PhiMoE's does: it makes its frequencies on the CPU and copies them to the device. The host waits for that, and no
    CUDA graph can hold it.
    """
    for each in module.modules():
        if callable(compute := getattr(each, "rope_init_fn", None)):
            each.rope_init_fn = _kept(compute, device)  # type: ignore[assignment]


def _kept(compute: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The same function; what it returns for a configuration alone is computed once."""
    kept: list[tuple[torch.Tensor, float]] = []

    def computed(config: Any, *more: Any, **named: Any) -> Any:
        if more or named:
            return compute(config, *more, **named)
        if not kept:
            frequencies, scaling = compute(config)
            kept.append((frequencies.to(device), scaling))
        return kept[0]

    return computed


def _kinds(module: nn.Module) -> set[Any]:
    """The types of RoPE of a rotary embedding; none if the module is something else."""
    kind = getattr(module, "rope_type", None)
    return set(kind.values()) if isinstance(kind, dict) else set() if kind is None else {kind}


def _without_last(output: Any) -> Any:
    """[..., tokens + 1, dim] -> [..., tokens, dim], of a tensor or a tuple of them."""
    return output[..., :-1, :] if isinstance(output, torch.Tensor) else tuple(each[..., :-1, :] for each in output)


def _in_order(outputs: Sequence[Any], order: Sequence[int], dim: int) -> Any:
    """Joins [..., rows, tokens, dim] whose rows, or tokens if `dim` says so, are those in `order`."""
    if not isinstance(outputs[0], torch.Tensor):
        return tuple(_in_order(parts, order, dim) for parts in zip(*outputs, strict=True))
    joined = torch.cat(list(outputs), dim=dim)
    index = torch.tensor(order, device=joined.device).argsort()
    return joined.index_select(joined.ndim + dim, index)
