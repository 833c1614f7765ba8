"""The layout of DBRX: one matrix for each projection, in which a layer's experts are stored one below the other.

All three, w1 (the gate), v1 and w2, are [E x I, H]. So shapes do not show how many experts there are and of which size;
config.json must. An expert's w2 is used transposed: its rows are the inputs of the projection.
"""

import torch

from fiddler.checkpoint.claims import Claim, tensors_by_role
from fiddler.checkpoint.errors import ConfigError, ShapeError
from fiddler.checkpoint.formats.stored import view_into
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.views import Expert


def concatenated_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    Raises:
        ConfigError: config.json does not give the number of experts or their size.
        MissingTensorError: A tensor is missing.
        ShapeError: A shape does not fit config.json.
    """
    num_experts, inner, hidden = config.num_experts, config.intermediate_size, config.hidden_size
    if num_experts is None or inner is None:
        unsaid = "number of experts" if num_experts is None else "intermediate size of experts"
        raise ConfigError(f"{config.path} gives no {unsaid}, which the shapes in {claim.prefix!r} do not show.")
    tensors = tensors_by_role(claim, config)
    shape = (num_experts * inner, hidden)
    for tensor in tensors.values():
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with {num_experts} "
                f"experts of {inner} and a hidden size of {hidden} ({config.path}: {config.hidden_size_field}) it must "
                f"be {list(shape)}."
            )

    def expert(number: int) -> Expert:
        begin = number * inner * hidden
        wide, by_row = (inner, hidden), (hidden, 1)
        return Expert(
            gate=view_into(tensors["gate"], begin=begin, shape=wide, strides=by_row, dtype=dtype),
            up=view_into(tensors["up"], begin=begin, shape=wide, strides=by_row, dtype=dtype),
            down=view_into(tensors["down"], begin=begin, shape=(hidden, inner), strides=by_row[::-1], dtype=dtype),
        )

    return tuple(expert(number) for number in range(num_experts))
