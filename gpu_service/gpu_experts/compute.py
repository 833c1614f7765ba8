"""Computes experts on the device of the dense part, from weights that are resident there or are being copied."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import Assignments, ExpertWeights, assign, expert_forward, layer_combination
from gpu_service.gpu_experts.streaming import ExpertCopy


class DeviceExperts:
    """Computes a batch's resident and streamed experts, layer by layer."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._device = device
        self._combinations = [layer_combination(layer.activation) for layer in checkpoint.layers]

    def run(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: npt.NDArray[np.int32],
        routing_weights: npt.NDArray[np.float32],
        resident: Mapping[int, ExpertWeights],
        streamed: Sequence[tuple[int, ExpertCopy]],
        total: torch.Tensor,
    ) -> None:
        """Adds routing weight x expert(row), for the given experts, to the rows of `total`.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the device.
            expert_ids: [rows, k]; ids that are neither resident nor streamed are left out.
            routing_weights: [rows, k].
            resident: Weights by expert id; they are computed first.
            streamed: Expert ids and their copies, in the order in which the copies land. All are released.
            total: [rows, hidden] float32 on the device.
        """
        wanted = [*resident, *(expert for expert, _ in streamed)]
        assignments = self._assign(expert_ids, routing_weights, wanted)
        spans = {
            expert: slice(assignments.starts[position], assignments.starts[position + 1])
            for position, expert in enumerate(assignments.experts)
        }
        # transferred once for all experts: a transfer costs more than a small expert's product
        rows, weights = assignments.rows.to(self._device), assignments.weights.to(self._device)

        def add(expert: int, matrices: ExpertWeights) -> None:
            span = spans[expert]
            output = expert_forward(matrices, self._combinations[layer], hidden.index_select(0, rows[span]))
            total.index_add_(0, rows[span], output.to(torch.float32) * weights[span, None])

        for expert, matrices in resident.items():
            add(expert, matrices)
        for expert, copy in streamed:
            try:
                add(expert, copy.wait())
            finally:
                copy.release()

    def _assign(
        self, expert_ids: npt.NDArray[np.int32], routing_weights: npt.NDArray[np.float32], wanted: list[int]
    ) -> Assignments:
        ids = np.where(np.isin(expert_ids, wanted), expert_ids, np.int32(-1))
        return assign(torch.from_numpy(ids), torch.from_numpy(np.ascontiguousarray(routing_weights)))
