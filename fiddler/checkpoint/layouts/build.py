"""From the tensors of one layer's experts to a view of every expert's matrices, all shapes checked.

It opens no file and reads no weight.
"""

import torch

from fiddler.checkpoint.claims import Claim
from fiddler.checkpoint.errors import ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.layouts.concatenated import concatenated_experts, is_concatenated
from fiddler.checkpoint.layouts.fused import _fused_experts
from fiddler.checkpoint.layouts.separate import _separate_experts
from fiddler.checkpoint.layouts.stacked import is_stacked, stacked_experts
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.views import CheckpointLayer

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def build_layer(claim: Claim, config: MoeConfig) -> CheckpointLayer:
    """One layer's experts, complete and of agreeing shapes and dtype.

    Raises:
        MissingTensorError: an expert or one of its tensors is missing, or there are more than config.json says.
        ShapeError: a shape does not fit the others or config.json.
        UnsupportedDtypeError: a dtype that nothing here computes, or two dtypes in one layer.
    """
    dtype = _common_dtype(claim)
    if is_stacked(claim):
        experts = stacked_experts(claim, config, dtype)
    elif "expert" in claim.naming.pattern.groupindex:
        experts = _separate_experts(claim, config, dtype)
    elif is_concatenated(claim):
        experts = concatenated_experts(claim, config, dtype)
    else:
        experts = _fused_experts(claim, config, dtype)
    down = experts[0].down
    hidden_size, intermediate_size = down.shape
    if config.intermediate_size not in (None, intermediate_size):
        raise ShapeError(
            f"{down.file} has an expert intermediate size of {intermediate_size} in the tensor {down.name!r}, but "
            f"{config.path} says {config.intermediate_size}."
        )
    return CheckpointLayer(
        claim.prefix, claim.decoder_layer, experts, hidden_size, intermediate_size, config.activation
    )


def _common_dtype(claim: Claim) -> torch.dtype:
    first = next(iter(claim.tensors.values()))
    for tensor in claim.tensors.values():
        if tensor.dtype not in DTYPES:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}; supported are "
                f"{', '.join(DTYPES)}."
            )
        if tensor.dtype != first.dtype:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}, but {first.name!r} as "
                f"{first.dtype}: all experts must have one dtype."
            )
    return DTYPES[first.dtype]
