"""Panels of the dashboard *Service* on the HTTP gateway."""

from observability.generate.expressions import GATEWAYS, percentiles, total_rate
from observability.generate.kinds import chart
from observability.generate.model import Query

_NO_REQUEST = "No HTTP request ended in this time range, or no gateway is scraped and chosen above."

HTTP = (
    chart(
        "HTTP requests",
        "Requests per second that the gateway answered, by path and HTTP status.",
        [
            Query(
                total_rate("fiddler_http_requests_total", GATEWAYS, "endpoint, http_status"),
                "{{endpoint}} {{http_status}}",
            )
        ],
        "reqps",
        width=6,
        stacked=True,
        when_empty=_NO_REQUEST,
    ),
    chart(
        "Time of an answer over HTTP",
        "Seconds from a request's arrival until the last byte of its answer: at most this for half, nine in ten, and "
        "99 in 100. It contains the time that a caller takes to read.",
        percentiles("fiddler_http_request_seconds", GATEWAYS),
        "s",
        width=6,
        when_empty=_NO_REQUEST,
    ),
    chart(
        "First text over HTTP",
        "Seconds from the arrival of a streamed request until its first text is sent. What it exceeds the time to "
        "first token by is the gateway's and the way to it.",
        percentiles("fiddler_http_time_to_first_token_seconds", GATEWAYS),
        "s",
        width=6,
        when_empty="No streamed HTTP request was answered in this time range, or no gateway is scraped and chosen.",
    ),
    chart(
        "Open streams over HTTP",
        "Streamed answers that are under way.",
        [Query(f"sum(fiddler_http_open_streams{{{GATEWAYS}}})", "streams")],
        "short",
        width=6,
        when_empty="No gateway is scraped and chosen above.",
    ),
)
