"""transformers in a process of its own, where its threads do not disturb the client. It has a copy of the weights."""

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Timing = tuple[float, float]
"""Seconds until the first token, and seconds per token after it (0 if there is only one)."""


class Reference:
    """The other process, which runs inside a `with Reference(...) as reference:` block."""

    def __init__(self, model: Path, dtype: str) -> None:
        context = get_context("spawn")
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(model, dtype, remote), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.default_experts = str(self._connection.recv())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.send(None)
        self._process.join()

    def generate(self, experts: str, prompt: list[int], num_tokens: int) -> Timing:
        """Generates greedily.

        Args:
            experts: The experts_implementation.
            prompt: Token ids.
            num_tokens: Tokens to generate.
        """
        self._connection.send((experts, prompt, num_tokens))
        seconds: Timing = self._connection.recv()
        return seconds


def _serve(directory: Path, dtype: str, connection: Connection) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.eval()
    connection.send(model.config._experts_implementation)
    with torch.inference_mode():
        while (request := connection.recv()) is not None:
            experts, prompt, num_tokens = request
            model.set_experts_implementation(experts)
            connection.send(_generate(model, torch.tensor([prompt]), num_tokens))


def _generate(model: Any, ids: Any, num_tokens: int) -> Timing:
    began = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    first = time.perf_counter()
    for _ in range(num_tokens - 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
    return first - began, (time.perf_counter() - first) / max(1, num_tokens - 1)
