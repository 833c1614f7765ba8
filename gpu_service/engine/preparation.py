"""Gives a request what chooses its tokens: samplers and matchers of stop texts, or a beam search."""

import torch

from gpu_service.engine.generation import Answer
from gpu_service.model_runner.model import Model
from gpu_service.sampling.beam_search import BeamSearch
from gpu_service.sampling.constraint import Constraint
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.sampler import Sampler


def prepare(answer: Answer, model: Model) -> None:
    """Prepares an answer before its first step.

    Args:
        answer: The answer.
        model: What computes it.

    Raises:
        ValueError: A logits processor refuses its parameter.
        ConstraintError: The grammar is too complex.
    """
    request, device = answer.request, model.device
    preceding = request.preceding
    chain = processors(request.sampling, request.ending, preceding_length=len(preceding), device=device)
    if request.beam:
        answer.search = BeamSearch(
            request.beam,
            ending=request.ending,
            preceding=preceding,
            prompt_length=len(request.prompt),
            processors=chain,
        )
        return
    for generation in answer.generations:
        if request.grammar is not None:
            generation.constraint = Constraint(
                request.grammar, ending=request.ending, eos_ids=model.eos_ids, vocab_size=model.vocab_size
            )
        generation.sampler = Sampler(
            request.sampling,
            index=generation.index,
            preceding=preceding,
            processors=chain,
            device=device,
            same_of_equals=model.dtype is torch.float32,
            constraint=generation.constraint,
        )
        generation.matcher = request.stop.matcher() if request.stop else None
