"""Transformers as the reference, and an engine that records what it computes."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.events import Event, Failed, Finished
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.request import Request
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.engine.stepper import Stepper
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support.requests import request_of

PROMPTS = ([5, 9, 11], [7] * 17 + [30, 31], list(range(40, 110)))
"""Prompts of three lengths, none a multiple of another."""


def generate(model: Any, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens that transformers generates, and the logits [tokens, vocab] that they were chosen from."""
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=num_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    # A decoder-only output begins with the prompt; an encoder-decoder's begins with the start token.
    begin = 1 if model.config.is_encoder_decoder else len(prompt)
    return output.sequences[0, begin:].tolist(), torch.cat(output.logits).float()


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' model of a checkpoint, with its experts."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.eval()


class RecordingEngine:
    """An engine in this process without its thread, on a running CPU expert service. It keeps events and logits.

    Args:
        directory: The checkpoint.
        experts: The address of the CPU expert service.
        dtype: The dtype of the computation.
        max_slots: KV rows.
        prefill_chunk: Tokens of a prompt in one step.
        num_tokens: The KV budget in tokens; None is enough for all rows.
    """

    def __init__(
        self,
        directory: Path,
        experts: str,
        *,
        dtype: torch.dtype = torch.float32,
        max_slots: int = 4,
        prefill_chunk: int = 32,
        num_tokens: int | None = None,
    ) -> None:
        self.client = ExpertClient(experts, dtype, timeout_seconds=60, max_message_bytes=2**26)
        checkpoint = Checkpoint.open(directory)
        self.client.connect(checkpoint.fingerprint)
        device = torch.device("cpu")
        self.model = Model(
            checkpoint,
            Dispatcher(checkpoint, device, self.client),
            device=device,
            dtype=dtype,
            num_rows=max_slots,
            max_context=512,
        )
        length = self.model.max_context
        self.budget = KvBudget(
            num_tokens=num_tokens or max_slots * length, token_bytes=1, max_rows=max_slots, max_length=length
        )
        self.model.cache.set_capacity(self.budget.num_tokens)
        self.scheduler = Scheduler(
            self.model.cache,
            self.budget,
            max_waiting=64,
            chunks=PrefillChunks.uniform(prefill_chunk),
            rope_angles=self.model.rope_angles,
            packs_spans=self.model.packs_spans,
        )
        self.stepper = RecordingStepper(self.model, self.scheduler, ids=RequestIds(), on_failure=self._raise)
        self.events: dict[Request, list[Event]] = {}
        self.answers: dict[Request, Answer] = {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[tuple[list[int], torch.Tensor]]:
        """The greedy tokens of prompts that run at once, and the logits [tokens, vocab] that they were chosen from."""
        requests = [self.request(prompt, num_tokens) for prompt in prompts]
        self.run(*requests)
        first = [self.answers[request].generations[0] for request in requests]
        return [(each.output, torch.stack(self.stepper.logits[each])) for each in first]

    def run(self, *requests: Request) -> None:
        """Computes requests, all at once, to their ends."""
        with torch.inference_mode():
            for request in requests:
                self.answers[request] = Answer(request)
                self.stepper.add(self.answers[request])
            while self.stepper.step():
                pass

    def request(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> Request:
        """A request whose events are kept; greedy by default."""
        events: list[Event] = []
        request = request_of(prompt, max_tokens, emit=events.append, **more)
        self.events[request] = events
        return request

    def outputs(self, request: Request) -> list[list[int]]:
        """The tokens of a request's generations, by index."""
        return [generation.output for generation in self.answers[request].generations]

    def finished(self, request: Request) -> list[Finished]:
        """How a request's generations ended, by index."""
        ends = [event for event in self.events[request] if isinstance(event, Finished | Failed)]
        assert not any(isinstance(end, Failed) for end in ends), ends
        return sorted((end for end in ends if isinstance(end, Finished)), key=lambda end: end.index)

    def close(self) -> None:
        """Closes the connection to the CPU expert service."""
        self.client.close()

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error


class RecordingStepper(Stepper):
    """A stepper that keeps the logits that each token was chosen from."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logits: dict[Generation, list[torch.Tensor]] = defaultdict(list)
        self.batches: list[Batch] = []

    @override
    def _advance(self, batch: Batch, logits: torch.Tensor) -> None:
        self.batches.append(batch)
        for part, own in zip(batch.parts, batch.logit_rows, strict=True):
            if part.span.logits is not Logits.NONE:
                self.logits[part.generation].append(logits[own.stop - 1].clone())
        super()._advance(batch, logits)
