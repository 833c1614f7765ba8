"""Panels of the dashboard *Service* on the HTTP gateway."""

from observability.generate.expressions import GATEWAYS, percentiles, total_rate
from observability.generate.model import Panel, Query

_NO_REQUEST = "No HTTP request ended in this time range, or no gateway is scraped and chosen above."

HTTP = (
    Panel(
        "HTTP requests",
        "Requests per second that the gateway answered, by path and HTTP status.",
        "timeseries",
        [
            Query(
                total_rate("fiddler_http_requests_total", GATEWAYS, "endpoint, http_status"),
                "{{endpoint}} {{http_status}}",
            )
        ],
        "reqps",
        width=6,
        stacked=True,
        minimum=0,
        when_empty=_NO_REQUEST,
    ),
    Panel(
        "Time of an answer over HTTP",
        "Seconds from a request's arrival until the last byte of its answer: at most this for half, nine in ten, and "
        "99 in 100. It contains the time that a caller takes to read.",
        "timeseries",
        percentiles("fiddler_http_request_seconds", GATEWAYS),
        "s",
        width=6,
        minimum=0,
        when_empty=_NO_REQUEST,
    ),
    Panel(
        "First text over HTTP",
        "Seconds from the arrival of a streamed request until its first text is sent. What it exceeds the time to "
        "first token by is the gateway's and the way to it.",
        "timeseries",
        percentiles("fiddler_http_time_to_first_token_seconds", GATEWAYS),
        "s",
        width=6,
        minimum=0,
        when_empty="No streamed HTTP request was answered in this time range, or no gateway is scraped and chosen.",
    ),
    Panel(
        "Open streams over HTTP",
        "Streamed answers that are under way.",
        "timeseries",
        [Query(f"sum(fiddler_http_open_streams{{{GATEWAYS}}})", "streams")],
        "short",
        width=6,
        minimum=0,
        when_empty="No gateway is scraped and chosen above.",
    ),
)
