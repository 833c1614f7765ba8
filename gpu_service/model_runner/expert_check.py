"""Whether a model's experts compute what is computed here, told from the model's own code rather than its name."""

from typing import Any

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import UnknownActivationError, layer_combination
from gpu_service.errors import ModelError

_WIDTH = 64
_TOLERANCE = 1e-5


def check_experts(checkpoint: Checkpoint, skeleton: nn.Module) -> None:
    """Makes sure that every experts module of a model, which may be on the meta device, is computed rightly.

    Raises:
        ModelError: What lies between, or after, an expert's projections is none that is known.
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
            f"{where} combine their projections otherwise than {activation.name}, the activation that config.json "
            "tells of, and no other is supported"
        )


def _combined_by(module: Any, values: torch.Tensor) -> torch.Tensor:
    combined: torch.Tensor = module._apply_gate(values) if module.has_gate else module.act_fn(values)
    return combined
