"""What is reported of a prompt while it is computed: how far it is, and its log probabilities."""

import torch

from gpu_service.engine.batches.batch import Part
from gpu_service.engine.events import Progress, Prompt
from gpu_service.sampling import logprobs
from gpu_service.sampling.outputs import TokenLogprobs


def report_progress(part: Part) -> None:
    """Reports that a chunk of a prompt is computed, if its request asked for that."""
    answer = part.generation.answer
    if answer.request.reports_progress and not part.generation.output:
        answer.request.emit(Progress(part.span.stop, answer.cached_prompt_tokens))


def collect_logprobs(part: Part, logits: torch.Tensor) -> None:
    """Collects the prompt's log probabilities of a chunk's [tokens, vocab] logits; reports them when complete."""
    answer, start = part.generation.answer, part.span.start
    request = answer.request
    following = request.prompt[start + 1 : start + 1 + len(logits)]
    if start == 0:
        answer.prompt_entries.append(TokenLogprobs(request.prompt[0], None))
    num_top = [request.prompt_logprobs] * len(following)
    answer.prompt_entries += logprobs.of_rows(logits[: len(following)], following, num_top)
    if part.ends_prompt:
        request.emit(Prompt(answer.prompt_entries))
