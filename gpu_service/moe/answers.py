"""What the CPU expert service answers: checked, and if it is lost in the middle of a layer, computed in its place."""

from collections.abc import Sequence

import numpy as np
import torch

from fiddler.kernels.finite import all_finite
from gpu_service import metrics
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.compute import DeviceExperts
from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.moe.counters import SelectionCounts
from gpu_service.moe.orchestration import Orchestration
from gpu_service.moe.pending import ExpertMessage
from gpu_service.planning.planner import rows_by_expert


class Answers:
    """The sums of messages to the CPU expert service. For the engine's thread."""

    def __init__(
        self,
        num_experts: Sequence[int],
        selections: SelectionCounts,
        *,
        uploads: Uploads,
        experts: DeviceExperts,
        in_process: RemoteExperts | None,
    ) -> None:
        """Knows of no answer yet.

        Args:
            num_experts: By layer.
            selections: Where it counts what is computed here.
            uploads: Copies rows to the device.
            experts: Computes on the device.
            in_process: Computes in place of the service; None: the device does.
        """
        self.in_process = in_process
        self._num_experts = num_experts
        self._selections = selections
        self._uploads = uploads
        self._experts = experts
        self._non_finite: set[int] = set()

    def checked(self, output: torch.Tensor, message: ExpertMessage, first_row: int) -> torch.Tensor:
        """Replaces rows that are not finite by zeros, so that they do not spread in the KV cache, and notes them.

        Args:
            output: The answer, [message's rows, hidden].
            message: What was sent.
            first_row: Of the batch, if a layer's rows are computed in several parts.
        """
        if all_finite(output):
            return output
        non_finite = ~torch.isfinite(output).all(dim=1) & torch.isfinite(message.hidden).all(dim=1)
        rows = np.flatnonzero(non_finite.numpy())
        metrics.NON_FINITE_ROWS.inc(len(rows))
        self._non_finite.update((first_row + (rows if message.rows is None else message.rows[rows])).tolist())
        return output.masked_fill(non_finite[:, None], 0)

    def take_non_finite(self) -> set[int]:
        """See Dispatcher.take_non_finite."""
        rows, self._non_finite = self._non_finite, set()
        return rows

    def computed_here(self, layer: int, message: ExpertMessage, orchestration: Orchestration) -> torch.Tensor:
        """Computes in the place of the service what it never answers: [message's rows, hidden].

        Raises:
            ExpertServiceError: Nothing here can.
        """
        self._selections.add_route(layer, "streamed", num_selections(message))
        metrics.REPLANNED_LAYERS.inc()
        if self.in_process is not None:
            return self.in_process.submit(
                layer, message.hidden, expert_ids=message.ids, routing_weights=message.weights
            ).join()
        counts = rows_by_expert(message.ids.numpy(), self._num_experts[layer])
        plan = orchestration.plan(layer, counts.tolist(), remote_available=False)
        if plan.remote:
            raise ExpertServiceError("the CPU expert service is lost, and there is no room to compute its experts here")
        (hidden,) = self._uploads.to_device(message.hidden)
        resident = orchestration.resident_weights(layer, plan.resident)
        return self._experts.run(
            layer,
            hidden,
            expert_ids=message.ids.numpy(),
            routing_weights=message.weights.numpy(),
            resident=resident,
            streamed=orchestration.stream(layer, plan.streamed),
        )


def num_selections(message: ExpertMessage) -> int:
    """How many experts its rows have, all together."""
    return int(np.count_nonzero(message.ids.numpy() >= 0))
