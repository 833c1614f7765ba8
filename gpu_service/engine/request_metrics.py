"""Counts requests: their tokens as they come, and how they ended. For any thread."""

import time

from gpu_service import metrics
from gpu_service.engine.generation import Sequence
from gpu_service.engine.request import Request

_COMPLETED = frozenset({"eos", "length", "stop"})


def observe_token(sequence: Sequence, now: float) -> None:
    """Counts a token that a sequence was given at time.monotonic() == now, before its own times are updated."""
    metrics.GENERATION_TOKENS.inc()
    if sequence.request.first_token_at is None:
        metrics.TIME_TO_FIRST_TOKEN.observe(now - sequence.request.submitted_at)
    if sequence.last_token_at is not None:
        metrics.INTER_TOKEN_LATENCY.observe(now - sequence.last_token_at)


def refused(status: str) -> None:
    """Counts a request that was never computed, by its call's gRPC status."""
    metrics.REQUESTS.labels("error", status).inc()


def submitted(request: Request) -> None:
    """Counts a request that was well-formed."""
    metrics.PROMPT_TOKENS.inc(len(request.prompt))


def ended(request: Request, reasons: dict[str, int], status: str) -> None:
    """Counts a request that has ended.

    Args:
        request: Which.
        reasons: How many of its generations ended for each reason.
        status: Its call's gRPC status.
    """
    for reason, count in reasons.items():
        metrics.REQUESTS.labels(reason, status).inc(count)
    metrics.CACHED_PROMPT_TOKENS.inc(request.cached_prompt_tokens)
    last_token_at = max((each.last_token_at for each in request.sequences if each.last_token_at), default=None)
    queue_seconds, prefill_seconds, decode_seconds = request.stage_seconds(last_token_at)
    metrics.REQUEST_QUEUE_SECONDS.observe(queue_seconds)
    if request.first_token_at is not None:
        metrics.REQUEST_PREFILL_SECONDS.observe(prefill_seconds)
        metrics.REQUEST_DECODE_SECONDS.observe(decode_seconds)
    if reasons and reasons.keys() <= _COMPLETED:
        metrics.REQUEST_SECONDS.observe((last_token_at or time.monotonic()) - request.submitted_at)
