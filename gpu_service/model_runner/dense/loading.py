"""Loads a model whose linear layers stay in codes, or get them, one matrix at a time.

transformers decides which parameter a tensor of the checkpoint becomes. So it is given a stand-in for each matrix, one
number in memory that claims the matrix's shape, and the parameters that hold stand-ins afterwards say what became what.
No matrix is held in memory both plain and in codes but for the one at hand. A stand-in that transformers made something
else of, for example a part of a larger matrix, is found in no parameter; the model is then loaded once more, with those
matrices as they are.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import structlog
import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.coding import CodedTensor, dequantize
from fiddler.convert.quantize import quantize
from fiddler.convert.recipe import GROUP_INPUTS
from fiddler.kernels.linear import can_compute
from gpu_service.errors import ModelError
from gpu_service.model_runner.dense.coded import CodedEmbedding, CodedLinear
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.layers import CodableWeight, codable_weights
from gpu_service.model_runner.reading.dense_state import LazyState, LazyTensor

_log = structlog.get_logger(__name__)

LoadState = Callable[[Mapping[str, Any]], nn.Module]
"""Builds a model from tensors by the names of the checkpoint."""


class StandIn:
    """Stands for a matrix while transformers loads a model."""

    def __init__(self, matrix: LazyTensor, dtype: torch.dtype) -> None:
        self.matrix = matrix
        self.shape, self.ndim, self.dtype = matrix.shape, matrix.ndim, dtype
        self.is_read = False
        self._value = torch.zeros(1, dtype=dtype).expand(self.shape)

    @property
    def address(self) -> int:
        """Where its one number is, by which a parameter that holds it is known."""
        return self._value.data_ptr()

    def __getitem__(self, index: Any) -> torch.Tensor:
        self.is_read = True
        return self._value[index]


def load_coded(checkpoint: Checkpoint, dtype: torch.dtype, plan: DensePlan, load_state: LoadState) -> nn.Module:
    """The model on the CPU, with its linear layers in codes as far as the plan wants.

    Args:
        checkpoint: The checkpoint.
        dtype: Of what stays plain.
        plan: What is kept in codes.
        load_state: Builds the model.

    Raises:
        ModelError: The model cannot be loaded, or a weight cannot be coded.
    """
    state = LazyState(checkpoint, dtype)
    num_experts = {layer.num_experts for layer in checkpoint.layers}
    as_they_are: set[str] = set()
    while True:
        stand_ins = {
            name: StandIn(tensor, dtype)
            for name, tensor in state.items()
            if name not in as_they_are and _stands_in(tensor, plan)
        }
        module = load_state({**state, **stand_ins})
        lost = _lost(module, stand_ins)
        if not lost:
            _replace(module, stand_ins.values(), plan=plan, dtype=dtype, num_experts=num_experts)
            return module
        as_they_are |= lost


def _stands_in(tensor: LazyTensor, plan: DensePlan) -> bool:
    if tensor.ndim != 2:
        return False
    return plan.keeps if tensor.is_coded else plan.codes_in is not None and tensor.dtype.is_floating_point


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _lost(module: nn.Module, stand_ins: Mapping[str, StandIn]) -> set[str]:
    """The names of stand-ins that were taken and are in no parameter."""
    addresses = {tensor.data_ptr() for tensor in _tensors(module)}
    return {name for name, each in stand_ins.items() if each.is_read and each.address not in addresses}


def _replace(
    module: nn.Module,
    stand_ins: Collection[StandIn],
    *,
    plan: DensePlan,
    dtype: torch.dtype,
    num_experts: Collection[int],
) -> None:
    by_address = {each.address: each.matrix for each in stand_ins}
    replaced: list[LazyTensor] = []
    for weight in codable_weights(module, num_experts):
        parameter = weight.linears[0][2].weight
        matrix = by_address.get(parameter.data_ptr())
        if matrix is not None and (coded := _coded(matrix, plan)) is not None:
            _install(weight, coded, dtype)
            replaced.append(matrix)
    _log_exceptions(replaced, plan)
    for tensor in _tensors(module):
        if (matrix := by_address.get(tensor.data_ptr())) is not None:
            tensor.data = matrix[...].to(tensor.dtype)


def _coded(matrix: LazyTensor, plan: DensePlan) -> CodedTensor | None:
    """The matrix in codes; None if it is better decoded."""
    kind = plan.coded_in(matrix.shape[1], matrix.code_bits)
    if kind is None:
        coded = matrix.coded()
        return coded if plan.codes_in or can_compute(coded) else None
    try:
        weights = dequantize(matrix.coded()) if matrix.is_coded else matrix[...]
        return quantize(weights, kind, torch.get_num_threads())
    except ValueError as error:
        raise ModelError(
            f"--dense-format {plan.codes_in}: {matrix.file} holds the tensor {matrix.name!r}, of which {error}; set "
            "--dense-format bfloat16"
        ) from None


def _log_exceptions(replaced: Collection[LazyTensor], plan: DensePlan) -> None:
    """Logs which layers are in another format than the plan's, and which were in codes already; a line for each."""
    kinds = {matrix.name: plan.coded_in(matrix.shape[1], matrix.code_bits) for matrix in replaced}
    others = [name for name, kind in kinds.items() if kind not in (None, plan.codes_in)]
    if others:
        _log.info(
            "linear layers kept in int8",
            reason=f"groups of {GROUP_INPUTS} do not divide their inputs",
            layers=len(others),
            first=others[0],
        )
    again = [matrix.name for matrix in replaced if matrix.is_coded and kinds[matrix.name]]
    if again:
        _log.warning(
            "linear layers that the checkpoint has in codes are quantised again, which loses more than quantising what "
            "they were made of",
            asked=plan.codes_in,
            layers=len(again),
            first=again[0],
        )


def _install(weight: CodableWeight, coded: CodedTensor, dtype: torch.dtype) -> None:
    """Puts coded modules in the place of those that use a weight; they share the codes."""
    for parent, name, linear in weight.linears:
        setattr(parent, name, CodedLinear(coded, linear.bias, dtype))
    for parent, name, embedding in weight.embeddings:
        setattr(parent, name, CodedEmbedding(coded, embedding, dtype))
