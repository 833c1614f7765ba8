"""An expert's projections as numbers: where their matrices are in memory, for a kernel that reads them there.

Knows no kernel. Everything here is for one expert whose tensors are contiguous, as in a slot.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from fiddler.coding import CodedTensor
from fiddler.expert_math import ExpertWeights, Matrix

NUM_FACTS = 6
"""Of a matrix: the addresses of its weights or codes, scales, zero points and bias (0: none), the outputs that come
before it in its first group, and the bits of its multiplier as float32."""
GATE_UP = "gate_up"
"""Gate and up as one matrix."""
Facts = npt.NDArray[np.int64]
"""[NUM_FACTS]"""


def are_adjacent(weights: ExpertWeights) -> bool:
    """Whether gate and up, plain and without biases, are one matrix in memory.

    The matrices may have dimensions before [intermediate, hidden]: those of experts that lie next to each other.
    """
    gate, up = weights.gate, weights.up
    if not isinstance(gate, torch.Tensor) or not isinstance(up, torch.Tensor):
        return False
    if weights.gate_bias is not None or weights.up_bias is not None or up.shape != gate.shape:
        return False
    return up.storage_offset() == gate.storage_offset() + gate.shape[-2] * gate.shape[-1]


def joined(weights: ExpertWeights) -> torch.Tensor:
    """Gate and up, which are adjacent, as one matrix [experts, 2 x intermediate, hidden]."""
    gate = weights.gate
    assert isinstance(gate, torch.Tensor), "gate and up are adjacent"
    experts, outputs, inputs = gate.shape
    return gate.as_strided((experts, 2 * outputs, inputs), gate.stride())


def facts_of(weights: ExpertWeights) -> Mapping[str, Facts]:
    """What a kernel needs of each matrix, by the names of `ExpertWeights`, or GATE_UP for two that are adjacent."""
    matrices = {"gate": weights.gate, "up": weights.up, "factor": weights.factor, "down": weights.down}
    facts = {
        name: _facts(matrix, getattr(weights, f"{name}_bias", None))
        for name, matrix in matrices.items()
        if matrix is not None
    }
    if are_adjacent(weights):
        facts[GATE_UP] = facts["gate"]
    return facts


def _facts(matrix: Matrix, bias: torch.Tensor | None) -> Facts:
    address_of_bias = 0 if bias is None else bias.data_ptr()
    if isinstance(matrix, torch.Tensor):
        return np.array([matrix.data_ptr(), 0, 0, address_of_bias, 0, 0], dtype=np.int64)
    zeros = 0 if matrix.zeros is None else matrix.zeros.data_ptr()
    multiplier = int(np.float32(matrix.multiplier).view(np.int32))
    planes = matrix.codes.data_ptr(), matrix.scales.data_ptr(), zeros
    return np.array([*planes, address_of_bias, matrix.first_output, multiplier], dtype=np.int64)


def num_outputs(weights: ExpertWeights, name: str) -> int:
    """Outputs of a projection that `facts_of` names."""
    matrix = weights.up if name == GATE_UP else getattr(weights, name)
    assert isinstance(matrix, torch.Tensor | CodedTensor)
    return 2 * matrix.shape[0] if name == GATE_UP else matrix.shape[0]
