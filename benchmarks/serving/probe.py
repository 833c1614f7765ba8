"""An engine in this process whose steps are timed by part: experts, the rest of the model, and everything else."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cpu_expert_service.calibration import read_bytes_per_second
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import layer_weights
from fiddler.kernels.cpus import choose_cpus, read_topology
from fiddler.kernels.native import Pool
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.engine.stepper import Stepper
from gpu_service.model_runner.forward_input import Span
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.sampling.outputs import FinishReason
from pair import Pair

MAX_SLOTS = 16
_TIMEOUT_SECONDS = 600
_MAX_MESSAGE_BYTES = 2**26


@dataclass(slots=True)
class Step:
    """The seconds of one step by part."""

    batch: Batch
    seconds: float = 0.0
    forward_seconds: float = 0.0
    expert_seconds: float = 0.0
    kernel_seconds: float = 0.0
    """Of expert_seconds, those that the CPU expert service reports as computing."""
    num_distinct_experts: int = 0
    """Summed over the layers."""
    num_selections: int = 0
    """Rows times experts per row, summed over the layers."""

    @property
    def overhead_seconds(self) -> float:
        """All but the model's forward."""
        return self.seconds - self.forward_seconds

    @property
    def dense_seconds(self) -> float:
        """The forward without its experts."""
        return self.forward_seconds - self.expert_seconds


class Probe:
    """Runs requests step by step."""

    def __init__(self, directory: Path, experts: str, max_context: int) -> None:
        """Loads the model. The CPU expert service at `experts` must serve. Call `begin` before adding requests."""
        checkpoint = Checkpoint.open(directory)
        self._memory = _Memory(checkpoint)
        client = ExpertClient(
            experts, torch.bfloat16, timeout_seconds=_TIMEOUT_SECONDS, max_message_bytes=_MAX_MESSAGE_BYTES
        )
        client.connect(checkpoint.fingerprint)
        self._client = _TimedExperts(client)
        device = torch.device("cpu")
        dispatcher = Dispatcher(checkpoint, device, self._client)
        self._model = Model(
            checkpoint, dispatcher, device=device, dtype=torch.bfloat16, num_rows=MAX_SLOTS, max_context=max_context
        )
        length = self._model.max_context
        self._budget = KvBudget(num_tokens=MAX_SLOTS * length, token_bytes=1, max_rows=MAX_SLOTS, max_length=length)
        self._model.cache.set_capacity(self._budget.num_tokens)
        self._compute = self._model.compute
        self._model.compute = self._timed_compute  # type: ignore[method-assign]
        self._forward_seconds = 0.0
        self.expert_bytes = checkpoint.expert_bytes // sum(layer.num_experts for layer in checkpoint.layers)

    @torch.inference_mode()
    def begin(self, prefill_chunk: int, alone_chunk: int | None = None, *, packs_spans: bool = True) -> None:
        """Drops all requests and cached prompts, and sets the chunk sizes of prompts from now on.

        Args:
            prefill_chunk: Tokens of a step that computes pieces of prompts.
            alone_chunk: The same while there is one request; None: as many.
            packs_spans: Whether spans of several sequences are computed in one forward, if the model's can be.
        """
        self._scheduler = _WatchedScheduler(
            self._model.cache,
            self._budget,
            max_waiting=MAX_SLOTS,
            chunks=dataclasses.replace(PrefillChunks.uniform(prefill_chunk), alone=alone_chunk or prefill_chunk),
            rope_angles=self._model.rope_angles,
            packs_spans=packs_spans and self._model.packs_spans,
        )
        self._stepper = Stepper(self._model, self._scheduler, ids=RequestIds(), on_failure=self._raise)

    def read_bytes_per_second(self) -> float:
        """The memory's read bandwidth now, by calibration.read_bytes_per_second. Nothing else may compute meanwhile."""
        return self._memory.read_bytes_per_second()

    @torch.inference_mode()
    def add(self, *answers: Answer) -> None:
        """Starts requests."""
        for answer in answers:
            self._stepper.add(answer)

    @torch.inference_mode()
    def cancel(self, *answers: Answer) -> None:
        """Ends requests."""
        for answer in answers:
            self._stepper.cancel(answer.request, FinishReason.CANCELLED)

    @torch.inference_mode()
    def step(self) -> Step:
        """Computes one batch. There must be one to compute."""
        self._client.clear()
        began = time.perf_counter()
        self._stepper.step()
        seconds = time.perf_counter() - began
        assert self._scheduler.batch is not None, "there was nothing to compute"
        return Step(
            self._scheduler.batch,
            seconds,
            self._forward_seconds,
            self._client.seconds,
            self._client.kernel_seconds,
            self._client.num_distinct,
            self._client.num_selections,
        )

    def close(self) -> None:
        """Closes the connection, and ends the threads that read."""
        self._client.close()
        self._memory.close()

    def _timed_compute(self, spans: Sequence[Span]) -> torch.Tensor:
        began = time.perf_counter()
        logits = self._compute(spans)
        self._forward_seconds = time.perf_counter() - began
        return logits

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error


class _Memory:
    """Reads the experts from the same files and with as many threads as the CPU expert service; computes nothing."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._layers = [layer_weights(checkpoint, layer) for layer in checkpoint.layers]
        self._pool = Pool(choose_cpus(read_topology()))

    def read_bytes_per_second(self) -> float:
        return read_bytes_per_second(self._pool, self._layers)

    def close(self) -> None:
        self._pool.close()


class _WatchedScheduler(Scheduler):
    batch: Batch | None = None

    def next_batch(self) -> Batch | None:
        self.batch = super().next_batch()
        return self.batch


class _TimedExperts:
    """A RemoteExperts that times another one, and counts the experts that rows chose."""

    def __init__(self, client: ExpertClient) -> None:
        self._client = client
        self.clear()

    def clear(self) -> None:
        self.seconds = 0.0
        self.kernel_seconds = 0.0
        self.num_distinct = 0
        self.num_selections = 0

    @property
    def available(self) -> bool:
        return self._client.available

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        began = time.perf_counter()
        pending = self._client.submit(
            layer,
            hidden,
            expert_ids=expert_ids,
            routing_weights=routing_weights,
            timeout_seconds=timeout_seconds,
        )
        self.num_selections += expert_ids.numel()
        self.num_distinct += len(np.unique(expert_ids.numpy()))
        return _TimedOutput(self, pending, began)

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, slots=True)
class _TimedOutput:
    experts: _TimedExperts
    pending: PendingOutput
    began: float

    @property
    def compute_seconds(self) -> float | None:
        return self.pending.compute_seconds

    def join(self) -> torch.Tensor:
        output = self.pending.join()
        self.experts.seconds += time.perf_counter() - self.began
        self.experts.kernel_seconds += self.pending.compute_seconds or 0.0
        return output


@contextmanager
def probe(directory: Path, max_context: int) -> Iterator[Probe]:
    """Starts a CPU expert service, and yields a probe that is connected to it."""
    pair = Pair(directory, cpu_arguments=("--dtype", "bfloat16"))
    try:
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        running = Probe(directory, pair.experts, max_context)
        yield running
        running.close()
    finally:
        pair.close()
