"""The router of a MoE block: found in the block, and asked for expert ids and routing weights."""

import inspect
from typing import Any

import torch
from torch import nn

_ROUTER_NAMES = ("gate", "router")


def find_router(block: nn.Module) -> nn.Module | None:
    """The router of a MoE block, by the name that transformers gives it; None where it wants more than rows."""
    return next((child for name in _ROUTER_NAMES if _takes_rows(child := getattr(block, name, None))), None)


def _takes_rows(module: Any) -> bool:
    """Whether it is a module that is called with rows and needs nothing else."""
    if not isinstance(module, nn.Module):
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    required = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return len(required) == 1


def route(router: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a router chooses for rows: expert ids [rows, k] and routing weights [rows, k].

    None where it answers otherwise than transformers' routers do: (logits, weights, ids).
    """
    output = router(hidden)
    if not isinstance(output, tuple) or len(output) != 3:
        return None
    _, weights, ids = output
    if ids.is_floating_point() or weights.shape != ids.shape:
        return None
    return ids, weights
