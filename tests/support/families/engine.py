"""The real engine and the real CPU kernel in one process, which starts in a tenth of a second rather than in ten."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpu_expert_service.kernel import Kernel, PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel
from cpu_expert_service.runner import Result, Runner
from fiddler.checkpoint import Checkpoint
from fiddler.convert.recipe import DenseFormat
from fiddler.kernels.native import NativeUnavailableError, Pool, available_tiers
from gpu_service.engine.generation import Answer
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.sampling.parameters import BeamParameters
from tests.support.reference import RecordingStepper
from tests.support.requests import request_of

CPU = torch.device("cpu")
MAX_SLOTS = 4


@dataclass(frozen=True)
class _Computed:
    result: Result

    @property
    def compute_seconds(self) -> float:
        return self.result.compute_seconds

    def join(self) -> torch.Tensor:
        return self.result.output


class RunnerExperts:
    """RemoteExperts by the CPU expert service's own runner and the best kernel of this machine."""

    available = True

    def __init__(self, checkpoint: Checkpoint, kernel: Kernel) -> None:
        self._runner = Runner(checkpoint, kernel)

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Computed:
        return _Computed(self._runner.run(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights))


def best_kernel() -> Kernel:
    """A native kernel with one thread, or PyTorch's where there is none."""
    try:
        tier = available_tiers()[-1]
        return NativeKernel(Pool([0], [0]), tier)
    except NativeUnavailableError:
        return PyTorchKernel(1)


class Engine:
    """A model of ours that generates in this thread and records the logits that it chose by."""

    def __init__(
        self, directory: Path, kernel: Kernel, max_rows: int | None = None, *, dense_format: DenseFormat = "auto"
    ) -> None:
        self.checkpoint = checkpoint = Checkpoint.open(directory)
        dispatcher = Dispatcher(checkpoint, CPU, RunnerExperts(checkpoint, kernel))
        dispatcher.max_rows = max_rows
        self.model = Model(
            checkpoint,
            dispatcher,
            device=CPU,
            dtype=torch.float32,
            num_rows=MAX_SLOTS,
            max_context=512,
            dense_format=dense_format,
        )
        length = self.model.max_context
        budget = KvBudget(num_tokens=MAX_SLOTS * length, token_bytes=1, max_rows=MAX_SLOTS, max_length=length)
        self.model.cache.set_capacity(budget.num_tokens)
        self.scheduler = Scheduler(
            self.model.cache,
            budget,
            max_waiting=64,
            chunks=PrefillChunks.uniform(32),
            rope_angles=self.model.rope_angles,
            packs_spans=self.model.packs_spans,
        )
        self.stepper = RecordingStepper(self.model, self.scheduler, ids=RequestIds(), on_failure=self._raise)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[tuple[list[int], torch.Tensor]]:
        """Greedy tokens of prompts that run at once, and the logits [tokens, vocab] that they were chosen by."""
        answers = [self.answer(prompt, num_tokens) for prompt in prompts]
        self.run(*answers)
        first = [answer.generations[0] for answer in answers]
        return [(each.output, torch.stack(self.stepper.logits[each])) for each in first]

    def search(self, prompt: Sequence[int], num_tokens: int, num_beams: int) -> list[int]:
        """The best of so many beams."""
        answer = self.answer(prompt, num_tokens, beam=BeamParameters(num_beams))
        self.run(answer)
        assert answer.search is not None
        return list(answer.search.results()[0].token_ids)

    def answer(self, prompt: Sequence[int], num_tokens: int, **more: Any) -> Answer:
        return Answer(request_of(prompt, num_tokens, **more))

    def run(self, *answers: Answer) -> None:
        with torch.inference_mode():
            for answer in answers:
                self.stepper.add(answer)
            while self.stepper.step():
                pass

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error
