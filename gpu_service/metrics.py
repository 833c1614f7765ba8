"""The GPU service's metrics: each one's name and meaning. docs/metrics.md is generated from this file.

Nothing is counted here. The number of a CollectedMetric is kept where it arises, and collectors.py publishes it.
"""

from prometheus_client import Counter, Gauge, Histogram

from fiddler.metrics import LATENCY_BUCKETS, CollectedMetric
from fiddler.metrics import LOG_LINES_DROPPED as LOG_LINES_DROPPED

# These are vLLM's, so that the two services can be compared.
_TIME_TO_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_TOKEN_BUCKETS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip

# Generation
REQUESTS = Counter(
    "fiddler_requests_total",
    "Generations that ended, by reason and by their call's gRPC status; refused and failed ones have the reason error.",
    ["finish_reason", "status"],
)
REQUESTS_RUNNING = CollectedMetric("fiddler_requests_running", "gauge", "Requests that are being computed.")
REQUESTS_WAITING = CollectedMetric("fiddler_requests_waiting", "gauge", "Requests that wait for slots or memory.")
REQUESTS_WAITING_LIMIT = CollectedMetric(
    "fiddler_requests_waiting_limit", "gauge", "Requests that may wait (--max-waiting); another one is refused."
)
PROMPT_TOKENS = Counter("fiddler_prompt_tokens_total", "Prompt tokens of well-formed requests.")
CACHED_PROMPT_TOKENS = Counter(
    "fiddler_cached_prompt_tokens_total", "Prompt tokens whose keys and values were taken from an earlier request."
)
GENERATION_TOKENS = Counter("fiddler_generation_tokens_total", "Tokens generated.")
REQUEST_PROMPT_TOKENS = Histogram(
    "fiddler_request_prompt_tokens", "Tokens in the prompt of a request that ended.", buckets=_TOKEN_BUCKETS
)
REQUEST_GENERATION_TOKENS = Histogram(
    "fiddler_request_generation_tokens",
    "Tokens that a request generated, of all its generations together, when it ended.",
    buckets=_TOKEN_BUCKETS,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "fiddler_time_to_first_token_seconds",
    "Seconds from a request's arrival to its first token.",
    buckets=_TIME_TO_FIRST_TOKEN_BUCKETS,
)
INTER_TOKEN_LATENCY = Histogram(
    "fiddler_inter_token_latency_seconds", "Seconds between two tokens of a generation.", buckets=_INTER_TOKEN_BUCKETS
)
REQUEST_QUEUE_SECONDS = Histogram(
    "fiddler_request_queue_seconds",
    "Seconds that an ended request waited before it was computed.",
    buckets=_REQUEST_BUCKETS,
)
REQUEST_PREFILL_SECONDS = Histogram(
    "fiddler_request_prefill_seconds",
    "Seconds from the beginning of a request's computation to its first token, if it had one.",
    buckets=_REQUEST_BUCKETS,
)
REQUEST_DECODE_SECONDS = Histogram(
    "fiddler_request_decode_seconds",
    "Seconds from a request's first token to its last, if it had one.",
    buckets=_REQUEST_BUCKETS,
)
REQUEST_SECONDS = Histogram(
    "fiddler_request_end_to_end_seconds",
    "Seconds from a completed request's arrival to its last token.",
    buckets=_REQUEST_BUCKETS,
)
STEP_SECONDS = Histogram(
    "fiddler_step_seconds",
    "Seconds that the model took for one batch, by what it computed: pieces of prompts, or only next tokens.",
    ["phase"],
    buckets=LATENCY_BUCKETS,
)
KV_USED_SLOTS = CollectedMetric("fiddler_kv_used_slots", "gauge", "Rows of keys and values that running requests need.")
KV_CAPACITY_SLOTS = CollectedMetric("fiddler_kv_capacity_slots", "gauge", "Rows of keys and values that may be in use.")
DENSE_WEIGHT_BYTES = Gauge(
    "fiddler_dense_weight_bytes",
    "Bytes of all weights except the experts', as they are kept in memory.",
    ["dense_format"],
)
KV_USED_BYTES = CollectedMetric(
    "fiddler_kv_used_bytes", "gauge", "Bytes of keys and values that running requests may come to need."
)
KV_CAPACITY_BYTES = CollectedMetric("fiddler_kv_capacity_bytes", "gauge", "Bytes of keys and values that may be held.")

# Routing
EXPERT_SELECTIONS = CollectedMetric(
    "fiddler_expert_selections_total",
    "counter",
    "Experts chosen for tokens, by where they were computed; one token at top-2 counts 2.",
    ("layer", "route"),
)
EXPERT_SELECTIONS_BY_EXPERT = CollectedMetric(
    "fiddler_expert_selections_by_expert_total",
    "counter",
    "Experts chosen for tokens, by expert; one token at top-2 counts 2. Subject to --metrics-by-expert.",
    ("layer", "expert"),
)
EXPERT_SELECTIONS_BY_BAND = CollectedMetric(
    "fiddler_expert_selections_by_band_total",
    "counter",
    "Experts chosen for tokens, by band: neighbouring experts, in at most 32 bands per layer. Subject to "
    "--metrics-by-expert.",
    ("layer", "band"),
)
HOT_EXPERT_SHARE = CollectedMetric(
    "fiddler_hot_expert_selections_ratio",
    "gauge",
    "Share of a layer's recent selections that each of its 8 most chosen experts has. Only if the experts are too many "
    "for fiddler_expert_selections_by_expert_total. Subject to --metrics-by-expert.",
    ("layer", "expert"),
)
EXPERT_RESIDENT = CollectedMetric(
    "fiddler_expert_resident",
    "gauge",
    "1 if an expert is resident on the device, else 0. Subject to --metrics-by-expert.",
    ("layer", "expert"),
)
BAND_RESIDENT = CollectedMetric(
    "fiddler_expert_band_resident_ratio",
    "gauge",
    "Share of a band's experts that are resident on the device. Subject to --metrics-by-expert.",
    ("layer", "band"),
)
RESIDENT_EXPERTS = CollectedMetric(
    "fiddler_resident_experts", "gauge", "Experts of a layer that are resident on the device.", ("layer",)
)
EXPERT_SLOTS = CollectedMetric("fiddler_expert_slots", "gauge", "Experts that can be resident on the device.")
EXPERT_IMBALANCE = CollectedMetric(
    "fiddler_expert_imbalance_ratio",
    "gauge",
    "How often a layer's most chosen expert was recently chosen, divided by the mean of its experts (half of the weight"
    " is on the last 64 selections per expert); 1 is even.",
    ("layer",),
)
PLACEMENT_SWAPS = Counter(
    "fiddler_placement_swaps_total",
    "Experts that became resident on the device, by the cause of their copy: a batch, or the placement policy.",
    ["reason"],
)
PREFETCH_GUESSES = Counter(
    "fiddler_prefetch_guesses_total", "Experts predicted for a layer, by whether the prediction was right.", ["outcome"]
)
PREFETCHED_EXPERTS = Counter(
    "fiddler_prefetched_experts_total", "Experts copied ahead of their layer, by whether they were used.", ["outcome"]
)

# Costs
LAYER_SECONDS = CollectedMetric(
    "fiddler_layer_seconds_total",
    "counter",
    "Seconds from the router's choice until the sum of the layer's experts was computed.",
    ("layer",),
)
LAYER_PREDICTED_SECONDS = CollectedMetric(
    "fiddler_layer_predicted_seconds_total",
    "counter",
    "Seconds that the costs predicted for fiddler_layer_actual_seconds_total.",
    ("layer", "part"),
)
LAYER_ACTUAL_SECONDS = CollectedMetric(
    "fiddler_layer_actual_seconds_total",
    "counter",
    "Seconds that a part of a layer took. Parts overlap, so their sum exceeds the layer's time.",
    ("layer", "part"),
)
LAYER_OVERLAP_SECONDS = CollectedMetric(
    "fiddler_layer_overlap_seconds_total",
    "counter",
    "Seconds in which CPU and GPU both computed: for each layer, the shorter of its two parts.",
    ("layer",),
)
COST_SECONDS = CollectedMetric(
    "fiddler_cost_seconds",
    "gauge",
    "Seconds that plans are based on at present: one expert with one row, one copy, one message.",
    ("of",),
)
COST_CORRECTION = CollectedMetric(
    "fiddler_cost_correction_ratio",
    "gauge",
    "Factor on the costs measured at the start, to correct for a machine that is now slower or faster.",
    ("of",),
)
EXPERT_COPIED_BYTES = CollectedMetric(
    "fiddler_expert_copied_bytes_total",
    "counter",
    "Bytes of expert weights copied to the device, by reason.",
    ("reason",),
)
EXPERT_CALL_SECONDS = Histogram(
    "fiddler_expert_call_seconds",
    "Seconds of a round trip: from sending a layer's rows to the CPU expert service until its answer is received.",
    buckets=LATENCY_BUCKETS,
)
EXPERT_CALL_BYTES = Counter(
    "fiddler_expert_call_bytes_total", "Bytes exchanged with the CPU expert service.", ["direction"]
)
EXPERT_CALL_FAILURES = Counter(
    "fiddler_expert_call_failures_total", "Calls to the CPU expert service that failed, by gRPC status.", ["code"]
)
EXPERT_SERVICE_UP = Gauge("fiddler_expert_service_up", "1 while the CPU expert service is in use, else 0.")
EXPERT_SERVICE_LOSSES = Counter(
    "fiddler_expert_service_losses_total", "Times that the CPU expert service was lost after it had been in use."
)
EXPERT_SERVICE_RECONNECTS = Counter(
    "fiddler_expert_service_reconnects_total", "Times that the CPU expert service was in use again after a loss."
)
DEGRADED = Gauge(
    "fiddler_degraded", "1 while the CPU expert service is lost and the GPU service computes its experts, else 0."
)
DEGRADED_SECONDS = CollectedMetric(
    "fiddler_degraded_seconds_total",
    "counter",
    "Seconds without the CPU expert service, up to now.",
)
REPLANNED_LAYERS = Counter(
    "fiddler_replanned_layers_total",
    "Messages to the CPU expert service whose experts the GPU service computed instead.",
)
NON_FINITE_ROWS = Counter(
    "fiddler_spoiled_rows_total",
    "Rows that the CPU expert service answered with non-finite numbers; their requests failed.",
)

# Access
CERTIFICATE_EXPIRY = Gauge(
    "fiddler_tls_certificate_expiry_timestamp_seconds",
    "When the first certificate in the file of a TLS option expires, in seconds since the epoch.",
    ["option"],
)

# Series start at 0, so that the first event shows as an increase.
for _reason in ("eos", "length", "stop"):
    REQUESTS.labels(_reason, "OK")
for _reason, _status in (("cancelled", "OK"), ("cancelled", "CANCELLED"), ("deadline", "DEADLINE_EXCEEDED")):
    REQUESTS.labels(_reason, _status)
for _status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"):
    REQUESTS.labels("error", _status)
for _status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"):
    EXPERT_CALL_FAILURES.labels(_status)
for _outcome in ("right", "wrong"):
    PREFETCH_GUESSES.labels(_outcome)
for _outcome in ("used", "wasted"):
    PREFETCHED_EXPERTS.labels(_outcome)
for _reason in ("demand", "swap"):
    PLACEMENT_SWAPS.labels(_reason)
for _phase in ("prefill", "decode"):
    STEP_SECONDS.labels(_phase)
