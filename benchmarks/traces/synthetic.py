"""Traces drawn from distributions, for models that are too large to record here. The same seed gives the same trace.

Each token's experts are the k largest of log popularity + Gumbel noise, which draws k experts without replacement in
proportion to their popularity. The previous token's experts get a bonus, which gives the locality that is measured in
real models. Each topic has its own popularity, partly shared with the other topics.

The constants are compared with these measurements:

* Mixtral: Fiddler's authors publish counts of Mixtral-8x7B-Instruct by MMLU subject (efeslab/fiddler,
  benchmarks/results/popularity). Over a layer's 8 experts the logarithm of a share has a standard deviation of 0.35
  (international law) and 0.23 (mathematics), with a correlation of 0.49 between the two; the drawn traces have 0.29 and
  0.50. Section 5 of the Mixtral paper (arXiv 2401.04088) finds about a quarter of first choices repeated by the next
  token in the deeper layers, where chance gives an eighth, and little more than that in the first; the drawn traces
  have a fifth.
* Fine-grained models: Qwen3-30B-A3B, 128 experts and 8 per token, is reported at 1 - normalised entropy of 0.11 to
  0.15, its most popular expert with 4 to 6 % of a layer's calls, and 90 % of them with 58 to 65 experts
  (gpu-container's handbook, "Routing De-risk"); the drawn traces have 0.12, 5 % and 75. Zipf's law without an offset
  fits worse: nearly every token would choose the first experts. The correlation of topics and the repetition of tokens
  are assumed to be Mixtral's, since no figure is published.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.traces import Generation, Ids, Trace

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Routing:
    """How a model routes: its shape, the distribution of popularity, and the influence of the previous token."""

    name: str
    num_layers: int
    num_experts: int
    top_k: int
    log_popularity: Callable[[Weights], Weights]
    """From a standard normal score of each expert, [layers, experts], to the logarithm of its popularity."""
    topic_share: float = 0.5
    """Share of the score's variance that is a topic's own; the rest is common. 1 - the correlation of two topics."""
    repeat_bonus: float = 0.6
    """Added to the logarithm of the popularity of the previous token's experts."""


def _normal(deviation: float) -> Callable[[Weights], Weights]:
    """A popularity whose logarithm is normally distributed."""
    return lambda scores: (deviation * scores).astype(np.float32)


def _zipf(exponent: float, offset: float) -> Callable[[Weights], Weights]:
    """A popularity that falls with the rank by the Zipf-Mandelbrot law: (rank + offset) ** -exponent."""

    def log_popularity(scores: Weights) -> Weights:
        ranks = np.argsort(np.argsort(-scores, axis=1), axis=1) + 1
        weights: Weights = (-exponent * np.log(ranks + offset)).astype(np.float32)
        return weights

    return log_popularity


MIXTRAL = Routing("mixtral", 32, 8, 2, _normal(0.28))
FINE_GRAINED = Routing("fine_grained", 48, 128, 8, _zipf(1.8, 18))


def generate(
    routing: Routing,
    topics: Sequence[str] = ("first", "second"),
    *,
    num_generations: int = 16,
    prompt_tokens: int = 64,
    output_tokens: int = 128,
    seed: int = 0,
) -> Trace:
    """Draws a trace.

    Args:
        routing: The model's shape and distributions.
        topics: In order. Popularity shifts from each topic to the next.
        num_generations: Of each topic.
        prompt_tokens: Of each generation.
        output_tokens: Of each generation.
        seed: The same seed and arguments give the same trace.
    """
    random = np.random.default_rng(seed)
    shape = (routing.num_layers, routing.num_experts)
    common = random.standard_normal(shape)
    generations: list[Generation] = []
    for topic in topics:
        own = random.standard_normal(shape)
        scores = np.sqrt(1 - routing.topic_share) * common + np.sqrt(routing.topic_share) * own
        popularity = routing.log_popularity(scores.astype(np.float32))
        tokens = _draw(
            routing, popularity, random, num_generations=num_generations, num_tokens=prompt_tokens + output_tokens
        )
        generations += [Generation(topic, one[:, :prompt_tokens], one[:, prompt_tokens:]) for one in tokens]
    provenance = f"synthetic, seed {seed}: {', '.join(topics)}"
    return Trace(routing.name, (routing.num_experts,) * routing.num_layers, routing.top_k, provenance, (*generations,))


def _draw(
    routing: Routing, popularity: Weights, random: np.random.Generator, *, num_generations: int, num_tokens: int
) -> Ids:
    """Returns [generations, layers, tokens, k]. All generations advance by one token at a time."""
    ids = np.empty((num_generations, routing.num_layers, num_tokens, routing.top_k), dtype=np.int16)
    bonus = np.zeros((num_generations, *popularity.shape), dtype=np.float32)
    for token in range(num_tokens):
        # minus the logarithm of an exponential is a Gumbel variate
        noise = -np.log(random.standard_exponential(bonus.shape, dtype=np.float32) + np.finfo(np.float32).tiny)
        keys = popularity + bonus + noise
        best = np.argpartition(-keys, routing.top_k - 1, axis=-1)[..., : routing.top_k]
        order = np.argsort(-np.take_along_axis(keys, best, axis=-1), axis=-1)
        chosen = np.take_along_axis(best, order, axis=-1)
        ids[:, :, token] = chosen
        bonus.fill(0)
        np.put_along_axis(bonus, chosen, routing.repeat_bonus, axis=-1)
    return ids
