"""Counts requests: their tokens as they are generated, and how they ended. For any thread."""

import time

from gpu_service import metrics
from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.request import Request

_PREFILL_SECONDS, _DECODE_SECONDS = (metrics.STEP_SECONDS.labels(phase) for phase in ("prefill", "decode"))
_COMPLETED = frozenset({"eos", "length", "stop"})


def observe_token(generation: Generation, now: float) -> None:
    """Counts a token that was generated at time.monotonic() == now, before the generation's times are updated."""
    metrics.GENERATION_TOKENS.inc()
    answer = generation.answer
    if answer.first_token_at is None:
        metrics.TIME_TO_FIRST_TOKEN.observe(now - answer.submitted_at)
    if generation.last_token_at is not None:
        metrics.INTER_TOKEN_LATENCY.observe(now - generation.last_token_at)


def observe_step(batch: Batch, seconds: float) -> None:
    """Counts the time of one forward, as prefill if it computes a piece of a prompt."""
    (_PREFILL_SECONDS if batch.is_prompt else _DECODE_SECONDS).observe(seconds)


def refused(status: str) -> None:
    """Counts a request that was never computed, by its call's gRPC status."""
    metrics.REQUESTS.labels("error", status).inc()


def submitted(request: Request) -> None:
    """Counts a request that was well-formed."""
    metrics.PROMPT_TOKENS.inc(len(request.prompt))


def ended(answer: Answer, reasons: dict[str, int], status: str, *, num_tokens: int) -> None:
    """Counts a request that has ended.

    Args:
        answer: How far the request was computed.
        reasons: How many of its generations ended for each reason.
        status: Its call's gRPC status.
        num_tokens: What was generated, in all its generations together.
    """
    for reason, count in reasons.items():
        metrics.REQUESTS.labels(reason, status).inc(count)
    metrics.CACHED_PROMPT_TOKENS.inc(answer.cached_prompt_tokens)
    metrics.REQUEST_PROMPT_TOKENS.observe(len(answer.request.prompt))
    metrics.REQUEST_GENERATION_TOKENS.observe(num_tokens)
    last_token_at = max((each.last_token_at for each in answer.generations if each.last_token_at), default=None)
    queue_seconds, prefill_seconds, decode_seconds = answer.stage_seconds(last_token_at)
    metrics.REQUEST_QUEUE_SECONDS.observe(queue_seconds)
    if answer.first_token_at is not None:
        metrics.REQUEST_PREFILL_SECONDS.observe(prefill_seconds)
        metrics.REQUEST_DECODE_SECONDS.observe(decode_seconds)
    if reasons and reasons.keys() <= _COMPLETED:
        metrics.REQUEST_SECONDS.observe((last_token_at or time.monotonic()) - answer.submitted_at)
