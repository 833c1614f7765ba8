"""What is reported of a prompt while it is computed: how far it is, and its log probabilities."""

import torch

from gpu_service.engine.events import Progress, Prompt
from gpu_service.engine.generation import Batch
from gpu_service.sampling import logprobs
from gpu_service.sampling.outputs import TokenLogprobs


def report_progress(batch: Batch) -> None:
    """Reports that a chunk of a prompt is computed, if its request asked for that."""
    (generation,) = batch.generations
    answer = generation.answer
    if answer.request.reports_progress and not generation.output:
        computed = batch.start[0] + len(batch.token_ids[0])
        answer.request.emit(Progress(computed, answer.cached_prompt_tokens))


def collect_logprobs(batch: Batch, logits: torch.Tensor) -> None:
    """Collects the prompt's log probabilities of a chunk's [tokens, vocab] logits; reports them when complete."""
    answer, start = batch.generations[0].answer, batch.start[0]
    request = answer.request
    following = request.prompt[start + 1 : start + 1 + len(logits)]
    if start == 0:
        answer.prompt_entries.append(TokenLogprobs(request.prompt[0], None))
    num_top = [request.prompt_logprobs] * len(following)
    answer.prompt_entries += logprobs.of_rows(logits[: len(following)], following, num_top)
    if batch.ends_prompt:
        request.emit(Prompt(answer.prompt_entries))
