"""Makes views of one layer's experts from the tensors that a naming claimed, all shapes checked."""

from collections.abc import Callable, Mapping
from typing import Final

import torch

from fiddler.checkpoint.claims import Claim
from fiddler.checkpoint.errors import ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.layouts.concatenated import concatenated_experts
from fiddler.checkpoint.layouts.fused import fused_experts
from fiddler.checkpoint.layouts.separate import separate_experts
from fiddler.checkpoint.layouts.stacked import stacked_experts
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Layout
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import CheckpointLayer, Expert

LAYOUTS: Final[Mapping[Layout, Callable[[Claim, MoeConfig, torch.dtype], tuple[Expert, ...]]]] = {
    "separate": separate_experts,
    "fused": fused_experts,
    "concatenated": concatenated_experts,
    "stacked": stacked_experts,
}
"""What makes a layer's experts from its tensors, by the layout of their naming."""

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def build_layer(claim: Claim, config: MoeConfig) -> CheckpointLayer:
    """One layer's experts, complete and of agreeing shapes and dtype.

    Raises:
        ConfigError: config.json does not give a size that the layout's shapes leave open.
        MissingTensorError: An expert or one of its tensors is missing, or there are more than config.json says.
        ShapeError: A shape does not fit the others or config.json.
        UnsupportedDtypeError: A dtype is not supported, or the layer has two dtypes.
    """
    experts = LAYOUTS[claim.naming.layout](claim, config, _common_dtype(claim))
    down = experts[0].down
    hidden_size, intermediate_size = down.shape
    if config.intermediate_size not in (None, intermediate_size):
        raise ShapeError(
            f"{down.file} has an expert intermediate size of {intermediate_size} in the tensor {down.name!r}, but "
            f"{config.path} says {config.intermediate_size} ({config.intermediate_size_field})."
        )
    return CheckpointLayer(
        name=claim.prefix,
        decoder_layer=claim.decoder_layer,
        experts=experts,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        activation=config.activation,
    )


def _common_dtype(claim: Claim) -> torch.dtype:
    """That of the plain tensors; if there are none, any will do."""
    plain = [tensor for tensor in claim.tensors.values() if isinstance(tensor, StoredTensor)]
    if not plain:
        return torch.bfloat16
    first = plain[0]
    for tensor in plain:
        if tensor.dtype not in _DTYPES:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}; supported are "
                f"{', '.join(_DTYPES)}."
            )
        if tensor.dtype != first.dtype:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}, but {first.name!r} as "
                f"{first.dtype}: all experts must have one dtype."
            )
    return _DTYPES[first.dtype]
