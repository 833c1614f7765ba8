"""What the dense part of a model stands for once its linear layers are in codes, for transformers to compute with."""

from collections.abc import Callable
from typing import Final

import torch
from torch import nn

from fiddler.coding import dequantize
from fiddler.convert.quantize import quantize
from fiddler.convert.recipe import CodedFormat

ROUTERS: Final = ("gate", "router", "shared_expert_gate", "router.layer")
"""How the names of routers end that are linear layers; they stay as they are."""


def rounded_to_8_bits(weight: torch.Tensor) -> torch.Tensor:
    """What 8 bits with a scale for each output stand for."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16).float()
    return (weight / scale).round().clamp(-127, 127) * scale


def rounded_to_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """What `fiddler.convert`'s codes of 4 bits stand for, or 8 bits where groups of 32 do not divide the inputs."""
    return rounded_to_8_bits(weight) if weight.shape[1] % 32 else dequantize(quantize(weight, "int4"))


ROUNDED: Final[dict[CodedFormat, Callable[[torch.Tensor], torch.Tensor]]] = {
    "int8": rounded_to_8_bits,
    "int4": rounded_to_4_bits,
}


def round_linear_layers(model: nn.Module, kind: CodedFormat) -> None:
    """Rounds every linear layer of a model of transformers but the routers, and tied embeddings with their head."""
    seen: set[int] = set()
    for name, child in model.named_modules():
        if type(child) is nn.Linear and not name.endswith(ROUTERS) and id(child.weight) not in seen:
            seen.add(id(child.weight))
            child.weight.data.copy_(ROUNDED[kind](child.weight.data))
