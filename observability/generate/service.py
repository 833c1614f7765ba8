"""The dashboard *Service*: requests, latency, queue. Health, memory and errors are in panels."""

from collections.abc import Mapping

from observability.generate.expressions import HERE, dashed, mean, on_the_right, percentiles, total_rate
from observability.generate.kinds import chart
from observability.generate.model import EXPERT_INSTANCE, GATEWAY, INSTANCE, Dashboard, Panel, Query, Row
from observability.generate.panels.http_gateway import HTTP
from observability.generate.panels.service_health import ERRORS, HEALTH, MEMORY


def _percentiles(title: str, description: str, metric: str, thresholds: Mapping[float, str]) -> Panel:
    which = f'{HERE}, quantile=~"0.5|0.9|0.99"'
    return chart(
        title,
        f"{description} At most this for half, nine in ten, and 99 in 100 of the last five minutes.",
        [Query(f"max by (quantile) (instance:{metric}:quantile5m{{{which}}})", "p{{quantile}}")],
        "s",
        thresholds=thresholds,
    )


_REQUESTS = (
    chart(
        "Generations that ended",
        "Generations per second by the reason of their end: the model's end-of-sequence token (eos), a stop text "
        "(stop), max_tokens (length), a caller that left or aborted (cancelled), the deadline, or a refusal or failure "
        "(error).",
        [Query(total_rate("fiddler_requests_total", HERE, "finish_reason"), "{{finish_reason}}")],
        "reqps",
        stacked=True,
    ),
    chart(
        "Tokens",
        "Tokens per second: generated, of prompts, and of prompts whose keys and values were cached.",
        [
            Query(total_rate("fiddler_generation_tokens_total", HERE), "generated"),
            Query(total_rate("fiddler_prompt_tokens_total", HERE), "prompts"),
            Query(total_rate("fiddler_cached_prompt_tokens_total", HERE), "prompts, cached"),
        ],
        "cps",
    ),
    chart(
        "Requests",
        "Requests that run, requests that wait, and the number that may wait before more are refused.",
        [
            Query(f"sum(fiddler_requests_running{{{HERE}}})", "running"),
            Query(f"sum(fiddler_requests_waiting{{{HERE}}})", "waiting"),
            Query(f"sum(fiddler_requests_waiting_limit{{{HERE}}})", "limit"),
        ],
        "short",
        overrides=[dashed("limit"), on_the_right("limit", "short")],
    ),
    chart(
        "Tokens of a prompt",
        "Tokens in the prompts of requests that ended: at most this for half, nine in ten, and 99 in 100.",
        percentiles("fiddler_request_prompt_tokens", HERE),
        "short",
        width=12,
    ),
    chart(
        "Tokens of an output",
        "Tokens that requests had generated when they ended: at most this for half, nine in ten, and 99 in 100.",
        percentiles("fiddler_request_generation_tokens", HERE),
        "short",
        width=12,
    ),
)

_LATENCY = (
    _percentiles(
        "Time to first token",
        "Seconds from a request's arrival to its first token, including its wait.",
        "fiddler_time_to_first_token_seconds",
        {0: "green", 5: "orange"},
    ),
    _percentiles(
        "Between two tokens",
        "Seconds between two tokens of a generation. People read at about 0.1.",
        "fiddler_inter_token_latency_seconds",
        {0: "green", 0.5: "orange"},
    ),
    _percentiles(
        "End to end",
        "Seconds from a request's arrival to its last token, for completed requests.",
        "fiddler_request_end_to_end_seconds",
        {0: "green", 60: "orange"},
    ),
    chart(
        "Stages of a request",
        "Mean seconds in the queue, from there to the first token, and from the first to the last token.",
        [Query(mean(f"fiddler_request_{stage}_seconds", HERE), stage) for stage in ("queue", "prefill", "decode")],
        "s",
        stacked=True,
    ),
    chart(
        "Queue",
        "The longest wait in seconds of nine in ten requests of the last five minutes, and the share of the queue that "
        "is full.",
        [
            Query(f'max(instance:fiddler_request_queue_seconds:quantile5m{{{HERE}, quantile="0.9"}})', "p0.9"),
            Query(f"max(instance:fiddler_requests_waiting:ratio{{{HERE}}})", "full"),
        ],
        "s",
        thresholds={0: "green", 30: "orange"},
        overrides=[on_the_right("full", "percentunit")],
    ),
    Panel(
        "Seconds between tokens over time",
        "Tokens by the seconds since the token before. If there are two groups of latencies, the slower one usually "
        "waits for the prompts of other requests.",
        "heatmap",
        [Query(total_rate("fiddler_inter_token_latency_seconds_bucket", HERE, "le"), "{{le}}", is_histogram=True)],
        "cps",
        y_unit="s",
    ),
)

DASHBOARD = Dashboard(
    "fiddler-service",
    "Service",
    "Requests and their ends, latencies, the queue, failures, and memory.",
    (INSTANCE, EXPERT_INSTANCE, GATEWAY),
    (
        Row("Health", HEALTH),
        Row("Requests", _REQUESTS),
        Row("Latency", _LATENCY),
        Row("HTTP gateway", HTTP),
        Row("Memory", MEMORY),
        Row("Errors", ERRORS),
    ),
)
