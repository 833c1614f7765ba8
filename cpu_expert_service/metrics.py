"""The CPU expert service's metrics, by name and meaning. docs/metrics.md is generated from this file.

Nothing is counted here. collectors.py reads the numbers of a CollectedMetric from the part that keeps them.
"""

from prometheus_client import Counter, Gauge, Histogram

from fiddler.metrics import LATENCY_BUCKETS, CollectedMetric
from fiddler.metrics import LOG_LINES_DROPPED as LOG_LINES_DROPPED

_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# Messages
REQUESTS = Counter("fiddler_expert_requests_total", "Layer messages answered, by gRPC status code.", ["code"])
ROWS = Counter("fiddler_expert_rows_total", "Hidden rows in messages that were computed.")
CALL_ROWS = Histogram("fiddler_expert_call_rows", "Hidden rows in a message that was computed.", buckets=_ROW_BUCKETS)
QUEUE_SECONDS = Histogram(
    "fiddler_expert_queue_seconds", "Seconds that a message waited while others were computed.", buckets=LATENCY_BUCKETS
)
COMPUTE_SECONDS = Histogram(
    "fiddler_expert_compute_seconds", "Seconds that a message took to compute.", buckets=LATENCY_BUCKETS
)
IDLE_SECONDS = CollectedMetric(
    "fiddler_expert_idle_seconds_total", "counter", "Seconds since the start in which no message was computed."
)
RECEIVED_BYTES = Counter("fiddler_expert_received_bytes_total", "Bytes of requests received.")
SENT_BYTES = Counter("fiddler_expert_sent_bytes_total", "Bytes of responses sent.")
STREAMS = Gauge("fiddler_expert_streams", "Streams that are open.")
THREADS = Gauge("fiddler_expert_threads", "Threads that compute one message.")

# Memory
WEIGHT_BYTES = Gauge("fiddler_expert_weight_bytes", "Bytes of expert weights that are served, as stored.")
REPACKED_BYTES = Gauge(
    "fiddler_expert_repacked_bytes",
    "Bytes of experts that were repacked into this process's own memory, because their format is not computed where it "
    "is stored. 0 for all other formats.",
)
RESIDENT_BYTES = CollectedMetric(
    "fiddler_expert_resident_bytes",
    "gauge",
    "Bytes of expert weights that are in this process's memory, estimated from some of their pages. The rest is read "
    "from disk when it is needed.",
)
WEIGHT_READ_BYTES = Counter(
    "fiddler_expert_weight_read_bytes_total",
    "Bytes of the experts that messages with few rows chose. Such messages take as long as reading the weights.",
)
WEIGHT_READ_SECONDS = Counter(
    "fiddler_expert_weight_read_seconds_total",
    "Seconds that those messages took; bytes over seconds is the bandwidth achieved.",
)
KERNEL_SECONDS = Gauge(
    "fiddler_expert_kernel_seconds",
    "Seconds that a kernel took at start-up for one expert, by how many rows the expert had.",
    ["kernel", "rows"],
)
KERNEL_READ_BANDWIDTH = Gauge(
    "fiddler_expert_kernel_read_bytes_per_second",
    "Bytes of weights per second that the kernel read at start-up, with one row in one expert at a time.",
)
MEMORY_READ_BANDWIDTH = Gauge(
    "fiddler_expert_memory_read_bytes_per_second",
    "Bytes per second that the same threads read from the same weights at start-up without computing, or that the "
    "kernel read if that was faster: the limit.",
)

# Present from the start with 0, so that the first one is an increase.
for _code in ("OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"):
    REQUESTS.labels(_code)
