"""The names of the metrics that are read."""

BUILD = "fiddler_build_info"
START = "process_start_time_seconds"

# of the GPU service
GENERATION_TOKENS = "fiddler_generation_tokens_total"
PROMPT_TOKENS = "fiddler_prompt_tokens_total"
RUNNING = "fiddler_requests_running"
WAITING = "fiddler_requests_waiting"
TIME_TO_FIRST_TOKEN = "fiddler_time_to_first_token_seconds"
INTER_TOKEN = "fiddler_inter_token_latency_seconds"
SELECTIONS = "fiddler_expert_selections_total"
SELECTIONS_BY_EXPERT = "fiddler_expert_selections_by_expert_total"
SELECTIONS_BY_BAND = "fiddler_expert_selections_by_band_total"
HOT_EXPERT_SHARE = "fiddler_hot_expert_selections_ratio"
IMBALANCE = "fiddler_expert_imbalance_ratio"
RESIDENT = "fiddler_expert_resident"
NUM_RESIDENT = "fiddler_resident_experts"
SWAPS = "fiddler_placement_swaps_total"
DEGRADED = "fiddler_degraded"

# of the CPU expert service
READ_BYTES = "fiddler_expert_weight_read_bytes_total"
READ_SECONDS = "fiddler_expert_weight_read_seconds_total"
COMPUTE_SECONDS = "fiddler_expert_compute_seconds_sum"
MEMORY_READ_BANDWIDTH = "fiddler_expert_memory_read_bytes_per_second"
