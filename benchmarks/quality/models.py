"""A checkpoint's model in this process, which gives the distribution of every next token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher

_CPU = torch.device("cpu")


class NextTokens:
    """Computes on the CPU, one sequence at a time but for `write`."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, num_rows: int, max_context: int) -> None:
        """Loads the dense weights; see `opened`."""
        dispatcher = Dispatcher(checkpoint, _CPU, InProcessExperts(checkpoint))
        self._model = Model(
            checkpoint, dispatcher, device=_CPU, dtype=dtype, num_rows=num_rows, max_context=max_context
        )

    def log_probabilities(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Those of every token of the vocabulary after each token of a sequence: [tokens, vocabulary] float32."""
        ids = torch.tensor([token_ids])
        positions = torch.arange(len(token_ids))[None]
        with torch.inference_mode():
            return self._model.forward(ids, positions, first_row=0, wants=Logits.ALL).log_softmax(-1)

    def write(self, num_sequences: int, length: int, *, first: int, seed: int) -> list[list[int]]:
        """Sequences that the model draws by its own probabilities.

        Args:
            num_sequences: How many; at most the number of rows.
            length: Tokens of each.
            first: The token that each begins with.
            seed: Of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.full((num_sequences, 1), first)
        written = [tokens]
        with torch.inference_mode():
            for position in range(length - 1):
                positions = torch.full((num_sequences, 1), position)
                logits = self._model.forward(tokens, positions, first_row=0, wants=Logits.LAST)
                tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                written.append(tokens)
        sequences: list[list[int]] = torch.cat(written, dim=1).tolist()
        return sequences


@contextmanager
def opened(directory: Path, *, dtype: torch.dtype, num_rows: int, max_context: int) -> Iterator[NextTokens]:
    """A checkpoint's model.

    Args:
        directory: The checkpoint.
        dtype: What is computed in. Coded weights are decoded to it.
        num_rows: Sequences that may be written at one time.
        max_context: Tokens of the longest sequence.
    """
    checkpoint = Checkpoint.open(directory)
    try:
        yield NextTokens(checkpoint, dtype=dtype, num_rows=num_rows, max_context=max_context)
    finally:
        checkpoint.close()
