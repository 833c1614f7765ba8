"""The dashboard *Service*: requests and what became of them, latency, queue. Health and errors: service_health.py."""

from collections.abc import Mapping

from observability.generate.expressions import HERE, dashed, mean, on_the_right, total_rate
from observability.generate.model import EXPERT_INSTANCE, INSTANCE, Dashboard, Panel, Query, Row
from observability.generate.service_health import ERRORS, HEALTH, MEMORY


def _percentiles(title: str, description: str, metric: str, thresholds: Mapping[float, str]) -> Panel:
    which = f'{HERE}, quantile=~"0.5|0.9|0.99"'
    return Panel(
        title,
        f"{description} Of the last five minutes: half, nine in ten, and 99 in 100 were at most this.",
        "timeseries",
        [Query(f"max by (quantile) (instance:{metric}:quantile5m{{{which}}})", "p{{quantile}}")],
        "s",
        minimum=0,
        thresholds=thresholds,
    )


_REQUESTS = (
    Panel(
        "Generations that ended",
        "Per second, by why: the model ended (eos), a stop text (stop), max_tokens (length), the caller left or "
        "aborted (cancelled), its time ran out (deadline), refused or failed (error).",
        "timeseries",
        [Query(total_rate("fiddler_requests_total", HERE, "finish_reason"), "{{finish_reason}}")],
        "reqps",
        stacked=True,
        minimum=0,
    ),
    Panel(
        "Tokens",
        "Per second: generated, of prompts, and of prompts whose keys and values were there already.",
        "timeseries",
        [
            Query(total_rate("fiddler_generation_tokens_total", HERE), "generated"),
            Query(total_rate("fiddler_prompt_tokens_total", HERE), "prompts"),
            Query(total_rate("fiddler_cached_prompt_tokens_total", HERE), "prompts, cached"),
        ],
        "cps",
        minimum=0,
    ),
    Panel(
        "Requests",
        "Being computed, waiting, and how many may wait before more are refused.",
        "timeseries",
        [
            Query(f"sum(fiddler_requests_running{{{HERE}}})", "running"),
            Query(f"sum(fiddler_requests_waiting{{{HERE}}})", "waiting"),
            Query(f"sum(fiddler_requests_waiting_limit{{{HERE}}})", "limit"),
        ],
        "short",
        minimum=0,
        overrides=[dashed("limit"), on_the_right("limit", "short")],
    ),
)

_LATENCY = (
    _percentiles(
        "Time to first token",
        "Seconds from a request's arrival to its first token, waiting included.",
        "fiddler_time_to_first_token_seconds",
        {0: "green", 5: "orange"},
    ),
    _percentiles(
        "Between two tokens",
        "Seconds between two tokens of a generation. A reader follows at about 0.1.",
        "fiddler_inter_token_latency_seconds",
        {0: "green", 0.5: "orange"},
    ),
    _percentiles(
        "End to end",
        "Seconds from a request's arrival to its last token, of those that were completed.",
        "fiddler_request_end_to_end_seconds",
        {0: "green", 60: "orange"},
    ),
    Panel(
        "Stages of a request",
        "Mean seconds: in the queue, until the first token, and from there to the last one.",
        "timeseries",
        [Query(mean(f"fiddler_request_{stage}_seconds", HERE), stage) for stage in ("queue", "prefill", "decode")],
        "s",
        stacked=True,
        minimum=0,
    ),
    Panel(
        "Queue",
        "Seconds that nine in ten requests of the last five minutes waited at most before they were computed, and how "
        "full the queue is.",
        "timeseries",
        [
            Query(f'max(instance:fiddler_request_queue_seconds:quantile5m{{{HERE}, quantile="0.9"}})', "p0.9"),
            Query(f"max(instance:fiddler_requests_waiting:ratio{{{HERE}}})", "full"),
        ],
        "s",
        minimum=0,
        thresholds={0: "green", 30: "orange"},
        overrides=[on_the_right("full", "percentunit")],
    ),
    Panel(
        "Seconds between tokens over time",
        "How many tokens came after how many seconds: where latencies fall into two groups, one of them usually waits "
        "for prompts of others.",
        "heatmap",
        [Query(total_rate("fiddler_inter_token_latency_seconds_bucket", HERE, "le"), "{{le}}", is_histogram=True)],
        "cps",
        y_unit="s",
    ),
)

DASHBOARD = Dashboard(
    "fiddler-service",
    "Service",
    "Requests and what became of them, how long they took, what waits, what fails, what memory is used.",
    (INSTANCE, EXPERT_INSTANCE),
    (
        Row("Health", HEALTH),
        Row("Requests", _REQUESTS),
        Row("Latency", _LATENCY),
        Row("Memory", MEMORY),
        Row("Errors", ERRORS),
    ),
)
