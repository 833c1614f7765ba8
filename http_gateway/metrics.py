"""The metrics of the gateway: names, meanings, labels."""

from prometheus_client import Counter, Gauge, Histogram

from fiddler.metrics import LATENCY_BUCKETS
from fiddler.metrics import LOG_LINES_DROPPED as LOG_LINES_DROPPED

_SECONDS = (*LATENCY_BUCKETS, 60.0, 120.0, 300.0, 600.0)

REQUESTS = Counter(
    "fiddler_http_requests_total",
    "Requests that were answered, by the status of the answer.",
    ["endpoint", "http_status"],
)
REQUEST_SECONDS = Histogram(
    "fiddler_http_request_seconds",
    "Seconds from a request's arrival until the last byte of its answer.",
    ["endpoint"],
    buckets=_SECONDS,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "fiddler_http_time_to_first_token_seconds",
    "Seconds from the arrival of a streamed request until its first text is sent.",
    ["endpoint"],
    buckets=_SECONDS,
)
OPEN_STREAMS = Gauge("fiddler_http_open_streams", "Streamed answers that are under way.")
