"""Carries out a MoE layer's plan: sends rows to the CPU expert service, computes the rest here, and joins the sums.

planning decides, gpu_experts and cpu_experts compute. This module holds the order of events.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import PendingOutput, PreparingExperts, RemoteExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.compute import DeviceExperts
from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.moe.answers import Answers, num_selections
from gpu_service.moe.counters import LayerCosts, SelectionCounts
from gpu_service.moe.device_timer import DeviceTimer
from gpu_service.moe.direct import FEW_ROWS, DirectLayers, DirectWork, PreparedLayer
from gpu_service.moe.host_staging import HostStaging
from gpu_service.moe.orchestration import EverythingRemote, Orchestration
from gpu_service.moe.pending import Capture, CaptureError, ExpertMessage, LayerWork
from gpu_service.moe.sending import send


class Dispatcher:
    """Computes the experts of one batch at a time, layer by layer. For the engine's thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        remote: RemoteExperts,
        *,
        in_process: RemoteExperts | None = None,
    ) -> None:
        """Has everything computed remotely until `use` is called.

        Args:
            checkpoint: The experts.
            device: The device that computes the dense part.
            remote: The CPU expert service.
            in_process: Replaces the CPU expert service while that is lost; None if experts can be copied to the device.
        """
        self.selections = SelectionCounts([layer.num_experts for layer in checkpoint.layers])
        self.costs = LayerCosts(len(checkpoint.layers))
        self.max_rows: int | None = None
        """The most rows of a layer that are planned and sent at once; None: any number."""
        self._num_experts = [layer.num_experts for layer in checkpoint.layers]
        self._preparing = _preparing(remote)
        self._device = device
        self._remote = remote
        self._staging = HostStaging(device)
        self._timer = DeviceTimer(device)
        self._uploads = Uploads(device)
        self._device_experts = DeviceExperts(checkpoint, self._uploads, device)
        self.answers = Answers(
            self._num_experts,
            self.selections,
            uploads=self._uploads,
            experts=self._device_experts,
            in_process=in_process,
        )
        """What the CPU expert service answers, and what is computed where it does not."""
        self.direct = DirectLayers(self._num_experts, self.selections, self.costs, self.answers)
        """Layers that need no plan."""
        self.capture: Capture | None = None
        """Takes the layers' rows while CUDA graphs are captured, when nothing is computed."""
        self.orchestration: Orchestration = EverythingRemote()
        """Makes the plans; `use` replaces it."""

    def use(self, orchestration: Orchestration) -> None:
        """Plans with this orchestration from now on."""
        self.orchestration = orchestration

    def clear_counts(self) -> None:
        """Sets the counts of selections and costs to zero."""
        self.direct.count()
        self.selections.clear()
        self.costs.clear()

    @contextmanager
    def with_backend(self, remote: RemoteExperts) -> Iterator[None]:
        """Replaces the CPU expert service by another backend within a `with` block."""
        usual, self._remote, self._preparing = self._remote, remote, _preparing(remote)
        try:
            yield
        finally:
            self._remote, self._preparing = usual, _preparing(usual)

    def begin(
        self, layer: int, hidden: torch.Tensor, *, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> LayerWork | DirectWork:
        """Plans a layer, sends what is remote and starts the copies of what is streamed. Waits for neither.

        A layer that needs no plan is sent first.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the device.
            expert_ids: [rows, k] on the device; -1 is left out.
            routing_weights: [rows, k] on the device.
        """
        if self.capture is not None:
            raise CaptureError("a block begins its experts by itself")
        began_at, orchestration = time.perf_counter(), self.orchestration
        on_host = {"rows": hidden, "ids": expert_ids.to(torch.int32), "weights": routing_weights.to(torch.float32)}
        guess = orchestration.guess(layer, hidden)
        if guess is not None:
            on_host["guess"] = guess
        rows, ids, weights, *guessed = self._staging.to_host(**on_host)
        if orchestration.is_all_remote and 0 < len(ids) <= FEW_ROWS and self._remote.available:
            return self.direct.begin(
                layer,
                hidden,
                on_host=(rows, ids, weights),
                began_at=began_at,
                remote=self._remote,
                orchestration=orchestration,
            )
        # counted on the CPU: a count on the GPU would be one more synchronisation
        selections = np.bincount(ids.numpy().reshape(-1) + 1, minlength=self._num_experts[layer] + 1)[1:]
        counts = np.minimum(selections, len(ids))  # see planner.rows_by_expert
        remote = self._remote_now()
        plan = orchestration.plan(layer, counts.tolist(), remote is not None)
        # sent before anything is copied: the CPU is the slowest side
        messages = send(
            layer,
            plan,
            hidden=rows,
            ids=ids,
            weights=weights,
            orchestration=orchestration,
            remote=remote,
            route="remote" if remote is self._remote else "streamed",
        )
        copies = orchestration.start_copies(layer, counts, plan)
        if guessed:
            orchestration.prefetch(layer, guessed[0].numpy())
        self.selections.add(layer, selections, ids.numel())
        for route, experts in (("resident", plan.resident), ("streamed", plan.streamed)):
            if experts:
                self.selections.add_route(layer, route, int(selections[list(experts)].sum()))
        return LayerWork(
            layer=layer,
            hidden=hidden,
            ids=ids.numpy(),
            weights=weights.numpy(),
            plan=plan,
            messages=messages,
            copies=copies,
            began_at=began_at,
        )

    def prepare(self, layer: int, *, rows: int, experts_per_row: int) -> PreparedLayer | None:
        """Prepares a layer whose rows native code computes, chooses experts for, and posts.

        Args:
            layer: Index into the checkpoint's MoE layers.
            rows: How many, in bfloat16 on the CPU.
            experts_per_row: How many each.

        Returns:
            For `direct`. None if the layer needs a plan or cannot be posted; it is then for `begin`.
        """
        is_direct = (
            self._preparing is not None
            and self.capture is None
            and rows <= min(FEW_ROWS, self.max_rows or FEW_ROWS)
            and self.orchestration.is_all_remote
            and self._preparing.available
        )
        if not is_direct or self._preparing is None:
            return None
        return self.direct.prepare(
            layer,
            rows=rows,
            experts_per_row=experts_per_row,
            remote=self._preparing,
            orchestration=self.orchestration,
        )

    def finish(self, work: LayerWork | DirectWork) -> torch.Tensor:
        """Computes what runs here and joins what was sent: [rows, hidden] in the dtype of the hidden rows.

        Raises:
            ExpertServiceError: The CPU expert service is lost, and nothing else can compute its experts.
        """
        if isinstance(work, DirectWork):
            (output,) = self._uploads.to_device(self.direct.finish(work))
            return output.to(work.hidden.dtype)
        if not work.plan.resident and not work.plan.streamed and len(work.messages) == 1:
            (joined,) = self._uploads.to_device(self._join(work, work.messages[0]))
            output = joined.to(work.hidden.dtype)
        else:
            output = self._finish_both_sides(work)
        self.costs.add_layer(work.layer, time.perf_counter() - work.began_at)
        return output

    def _finish_both_sides(self, work: LayerWork) -> torch.Tensor:
        plan, hidden = work.plan, work.hidden
        resident = self.orchestration.resident_weights(work.layer, plan.resident)
        span = self._timer.start()
        total = self._device_experts.run(
            work.layer,
            hidden,
            expert_ids=work.ids,
            routing_weights=work.weights,
            resident=resident,
            streamed=work.copies,
        )
        span.stop()
        if work.copies:
            predicted, actual = self.orchestration.observe_copies(work.layer, work.copies)
            self.costs.add("transfer", work.layer, predicted_seconds=predicted, actual_seconds=actual)
        for message in work.messages:
            joined = self._join(work, message)
            if message.rows is None:
                (output,) = self._uploads.to_device(joined)
                total += output
            else:
                output, rows = self._uploads.to_device(joined, torch.from_numpy(message.rows))
                total.index_add_(0, rows, output.to(torch.float32))
        if plan.resident or plan.streamed:
            self.costs.add_device(work.layer, span, predicted_seconds=plan.gpu_seconds, cpu_seconds=work.cpu_seconds)
        return total.to(hidden.dtype)

    def end_of_step(self, num_rows: int, seconds: float) -> None:
        """Changes residency between two batches, the last of which had so many rows and took so many seconds."""
        self.direct.count()
        self.orchestration.end_of_step(num_rows, seconds)

    def cancel_batch(self) -> None:
        """Releases what a failed batch left under way."""
        self.direct.count()
        self.orchestration.cancel_batch()

    def take_non_finite(self) -> set[int]:
        """Returns the batch's rows whose remote sums were not finite although what was sent was, and clears them.

        Zeros were put in place of those sums. Rows count from 0 in the forward that was computed last.
        """
        return self.answers.take_non_finite()

    def make_room(self) -> bool:
        """Gives memory of experts back to a device that ran out of it. Returns whether there was any to give."""
        return self.orchestration.make_room()

    def close(self) -> None:
        """Ends the copying of experts. Nothing may be computed afterwards."""
        self.orchestration.close()

    def _remote_now(self) -> RemoteExperts | None:
        return self._remote if self._remote.available else self.answers.in_process

    def _join(self, work: LayerWork, message: ExpertMessage) -> torch.Tensor:
        """Returns a message's partial sums, [part, hidden], from the CPU expert service or computed in its place."""
        if message.pending is not None:
            joining_at = time.perf_counter()
            try:
                output = message.pending.join()
            except ExpertServiceError:
                pass  # the client has reported it; even if the service is back by now, this answer never comes
            else:
                self._observe(work, message, message.pending, joining_at=joining_at)
                self.selections.add_route(work.layer, message.route, num_selections(message))
                return self.answers.checked(output, message, work.first_row)
        return self.answers.computed_here(work.layer, message, self.orchestration)

    def _observe(self, work: LayerWork, message: ExpertMessage, pending: PendingOutput, *, joining_at: float) -> None:
        """Corrects the costs by an answer, and counts its seconds."""
        now, seconds = time.perf_counter(), pending.compute_seconds
        predicted = self.orchestration.observe_remote(work.layer, message.ids.numpy(), seconds)
        if predicted is None or seconds is None or message.route != "remote":
            return
        self.costs.add("cpu", work.layer, predicted_seconds=predicted.compute_seconds, actual_seconds=seconds)
        work.cpu_seconds += seconds
        # otherwise the answer may have lain unread, or the message may have queued behind the one before it
        was_waited_for = len(work.messages) == 1 and (message.rows is None or joining_at - message.sent_at < seconds)
        if was_waited_for:
            hop_seconds = now - message.sent_at - seconds
            self.costs.add("hop", work.layer, predicted_seconds=predicted.hop_seconds, actual_seconds=hop_seconds)


def _preparing(remote: RemoteExperts) -> PreparingExperts | None:
    return remote if isinstance(remote, PreparingExperts) else None
