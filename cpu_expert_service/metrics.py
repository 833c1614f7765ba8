"""The CPU expert service's metrics."""

from prometheus_client import Counter, Gauge, Histogram

from fiddler.metrics import LATENCY_BUCKETS

REQUESTS = Counter("fiddler_expert_requests_total", "Layer messages answered, by gRPC status code.", ["code"])
ROWS = Counter("fiddler_expert_rows_total", "Hidden rows in messages that were computed.")
QUEUE_SECONDS = Histogram(
    "fiddler_expert_queue_seconds", "Seconds that a message waited for others to be computed.", buckets=LATENCY_BUCKETS
)
COMPUTE_SECONDS = Histogram(
    "fiddler_expert_compute_seconds", "Seconds that a message took to compute.", buckets=LATENCY_BUCKETS
)
RECEIVED_BYTES = Counter("fiddler_expert_received_bytes_total", "Bytes of requests received.")
SENT_BYTES = Counter("fiddler_expert_sent_bytes_total", "Bytes of responses sent.")
STREAMS = Gauge("fiddler_expert_streams", "Streams that are open.")
WEIGHT_BYTES = Gauge("fiddler_expert_weight_bytes", "Bytes of expert weights that are served, as stored.")
THREADS = Gauge("fiddler_expert_threads", "Threads that compute one message.")
KERNEL_SECONDS = Gauge(
    "fiddler_expert_kernel_seconds",
    "Seconds that a kernel took at start-up for one expert, by how many rows the expert had.",
    ["kernel", "rows"],
)
KERNEL_READ_BANDWIDTH = Gauge(
    "fiddler_expert_kernel_read_bytes_per_second",
    "Bytes of weights per second that the kernel got through at start-up, with one row in one expert at a time.",
)
MEMORY_READ_BANDWIDTH = Gauge(
    "fiddler_expert_memory_read_bytes_per_second",
    "Bytes per second that the same threads read from the same weights at start-up, computing nothing: the limit.",
)
