"""The router of a MoE block: found in the block, and asked for expert ids and routing weights."""

import inspect
from typing import Any, TypeGuard

import torch
from torch import nn

_ROUTER_NAMES = ("gate", "router")
"""What transformers' blocks call their router."""


def find_router(block: nn.Module) -> nn.Module | None:
    """Returns the router of a MoE block; None if it has none that is called with rows alone."""
    return next((child for name in _ROUTER_NAMES if takes_rows_alone(child := getattr(block, name, None))), None)


def takes_rows_alone(module: Any) -> TypeGuard[nn.Module]:
    """Whether this is a module that requires one argument, the rows."""
    if not isinstance(module, nn.Module):
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    required = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return len(required) == 1


def answers(router: nn.Module, rows: torch.Tensor) -> bool:
    """Whether a router chooses experts for [rows, hidden] alone. Some need more than their signature demands."""
    try:
        with torch.inference_mode():
            return route(router, rows) is not None
    except Exception:  # a family's own code, which may raise anything
        return False


def route(router: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns what a router chooses for [rows, hidden]: expert ids [rows, k] and routing weights [rows, k].

    None if the router does not return (logits, weights, ids), as transformers' routers do.
    """
    output = router(hidden)
    if not isinstance(output, tuple) or len(output) != 3:
        return None
    _, weights, ids = output
    if ids.is_floating_point() or weights.shape != ids.shape:
        return None
    return ids, weights
