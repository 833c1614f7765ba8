"""What transformers says, and engines of ours that record what they compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fiddler.checkpoint import Checkpoint
from gpu_service.dispatch import Dispatcher
from gpu_service.engine import Engine
from gpu_service.expert_client import ExpertClient
from gpu_service.model import Model
from gpu_service.request import Request
from gpu_service.sampling_parameters import SamplingParameters
from gpu_service.scheduler import Batch, Scheduler

PROMPTS = ([5, 9, 11], [7] * 17 + [30, 31], list(range(40, 110)))
"""Three lengths, none a multiple of another."""


def generate(model: Any, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens that transformers generates, and the logits [tokens, vocab] that they were chosen by."""
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=num_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).float()


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Transformers' own model, experts and all."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.eval()


class RecordingEngine(Engine):
    """An engine in this process whose experts are computed by a CPU expert service in another; it keeps all logits."""

    def __init__(self, directory: Path, experts: str, dtype: torch.dtype = torch.float32) -> None:
        self.client = ExpertClient(experts, dtype, timeout_seconds=60, max_message_bytes=2**26)
        checkpoint = Checkpoint.open(directory)
        self.client.connect(checkpoint.fingerprint)
        device = torch.device("cpu")
        model = Model(checkpoint, Dispatcher(checkpoint, device, self.client), device, dtype, 4, 512)
        super().__init__(model, Scheduler(max_slots=4, max_waiting=16, prefill_chunk=32), self._raise)
        self._logits: dict[Request, list[torch.Tensor]] = {}

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[tuple[list[int], torch.Tensor]]:
        """Greedy tokens of prompts that run at once, and the logits [tokens, vocab] that they were chosen by."""
        requests = [self._request(prompt, num_tokens) for prompt in prompts]
        self._logits = {request: [] for request in requests}
        for request in requests:
            self._add(request)
        with torch.inference_mode():
            while self.step():
                pass
        return [(request.output, torch.stack(self._logits[request])) for request in requests]

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    def _choose(self, batch: Batch, logits: torch.Tensor) -> list[int]:
        for request, row in zip(batch.requests, logits, strict=True):
            self._logits[request].append(row.clone())
        return super()._choose(batch, logits)

    @staticmethod
    def _request(prompt: Sequence[int], num_tokens: int) -> Request:
        return Request(list(prompt), SamplingParameters(), num_tokens, frozenset(), frozenset(), lambda event: None)

    @staticmethod
    def _raise(error: Exception) -> None:
        raise error
