"""Computes experts on the device of the dense part, from weights that are resident there or are being copied."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import Assignments, ExpertWeights, assign, expert_forward, layer_combination
from gpu_service.gpu_experts.grouped import MAX_ROWS, GroupedExperts
from gpu_service.gpu_experts.in_place import InPlace
from gpu_service.gpu_experts.slots import Holding
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.gpu_experts.uploads import Uploads


class DeviceExperts:
    """Computes a batch's resident and streamed experts, layer by layer."""

    def __init__(self, checkpoint: Checkpoint, uploads: Uploads, device: torch.device) -> None:
        """Computes nothing yet.

        Args:
            checkpoint: The experts.
            uploads: Copies to the device.
            device: The device.
        """
        kernel = InPlace(device)
        self._uploads = uploads
        self._combinations = [layer_combination(layer.activation) for layer in checkpoint.layers]
        self._grouped = [GroupedExperts(combine, uploads, kernel) for combine in self._combinations]

    def run(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: npt.NDArray[np.int32],
        routing_weights: npt.NDArray[np.float32],
        resident: Mapping[int, Holding],
        streamed: Sequence[tuple[int, ExpertCopy]],
    ) -> torch.Tensor:
        """Sums routing weight x expert(row) over each row's experts among the given ones.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the device.
            expert_ids: [rows, k]; ids that are neither resident nor streamed are left out.
            routing_weights: [rows, k].
            resident: Weights by expert id; they are computed first.
            streamed: Expert ids and their copies, in the order in which the copies land. All are released.

        Returns:
            [rows, hidden] float32 on the device.
        """
        total = None
        if resident and hidden.device.type == "cuda" and len(hidden) <= MAX_ROWS:
            total = self._grouped[layer].sums(
                hidden, dict(resident), expert_ids=expert_ids, routing_weights=routing_weights
            )
            resident = {}
        if total is None:
            total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        if resident or streamed:
            self._add_each(
                layer,
                hidden,
                expert_ids=expert_ids,
                routing_weights=routing_weights,
                resident=resident,
                streamed=streamed,
                total=total,
            )
        return total

    def _add_each(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: npt.NDArray[np.int32],
        routing_weights: npt.NDArray[np.float32],
        resident: Mapping[int, Holding],
        streamed: Sequence[tuple[int, ExpertCopy]],
        total: torch.Tensor,
    ) -> None:
        """Computes one expert after the other: for many rows, whose products take longer than their launches."""
        wanted = [*resident, *(expert for expert, _ in streamed)]
        assignments = self._assign(expert_ids, routing_weights, wanted)
        spans = {
            expert: slice(assignments.starts[position], assignments.starts[position + 1])
            for position, expert in enumerate(assignments.experts)
        }
        # transferred once for all experts: a transfer costs more than a small expert's product
        rows, weights = self._uploads.to_device(assignments.rows, assignments.weights)

        def add(expert: int, matrices: ExpertWeights) -> None:
            span = spans[expert]
            output = expert_forward(matrices, self._combinations[layer], hidden.index_select(0, rows[span]))
            total.index_add_(0, rows[span], output.to(torch.float32) * weights[span, None])

        for expert, held in resident.items():
            add(expert, held.weights)
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
