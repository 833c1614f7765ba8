"""Checks that a model's experts compute what this service computes, by running the model's own code on numbers."""

from typing import Any

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import UnknownActivationError, layer_combination
from gpu_service.errors import ModelError

_WIDTH = 64
_TOLERANCE = 1e-5


def check_experts(checkpoint: Checkpoint, skeleton: nn.Module) -> None:
    """Checks every class of experts in a model, which may be on the meta device.

    Raises:
        ModelError: Experts compute something between or after their projections that is not supported.
    """
    checked = set()
    for name, module in skeleton.named_modules():
        if hasattr(module, "_apply_gate") and type(module) not in checked:
            checked.add(type(module))
            _check(checkpoint, name, module)


def _check(checkpoint: Checkpoint, name: str, module: Any) -> None:
    where = f"{checkpoint.directory}: the experts at {name}"
    if module.has_post_expert_norm:
        raise ModelError(f"{where} normalise each expert's output before it is weighted, which is not supported")
    activation = checkpoint.layers[0].activation
    try:
        combine = layer_combination(activation)
    except UnknownActivationError as error:
        raise ModelError(f"{where}: {error}") from None
    values = torch.linspace(-20, 20, 8 * _WIDTH).view(8, _WIDTH)[:, torch.randperm(_WIDTH)]
    try:
        due = _combined_by(module, values)
    except Exception as error:
        raise ModelError(f"{where} have an activation that is not supported ({type(error).__name__})") from error
    gate, up = values.chunk(2, dim=-1) if module.is_concatenated else (values[:, ::2], values[:, 1::2])
    got = combine(gate, up) if module.has_gate else combine(None, values)
    if not torch.allclose(got, due, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ModelError(
            f"{where} do not combine their projections as {activation.name} does, the activation in config.json; no "
            "other way is supported"
        )


def _combined_by(module: Any, values: torch.Tensor) -> torch.Tensor:
    combined: torch.Tensor = module._apply_gate(values) if module.has_gate else module.act_fn(values)
    return combined
