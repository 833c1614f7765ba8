"""Recording rules that give vLLM's metrics, so that dashboards and alerts made for vLLM show this service.

The names and labels are those of vLLM's documentation, "Production Metrics", of its engine V1.
"""

_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "fiddler_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "fiddler_inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds": "fiddler_request_end_to_end_seconds",
    "vllm:request_queue_time_seconds": "fiddler_request_queue_seconds",
    "vllm:request_prefill_time_seconds": "fiddler_request_prefill_seconds",
    "vllm:request_decode_time_seconds": "fiddler_request_decode_seconds",
    "vllm:request_prompt_tokens": "fiddler_request_prompt_tokens",
    "vllm:request_generation_tokens": "fiddler_request_generation_tokens",
}
_OTHERS = {
    "vllm:num_requests_running": "fiddler_requests_running",
    "vllm:num_requests_waiting": "fiddler_requests_waiting",
    "vllm:kv_cache_usage_perc": "fiddler_kv_used_bytes / fiddler_kv_capacity_bytes",  # a share, whatever its name says
    "vllm:prompt_tokens_total": "fiddler_prompt_tokens_total",
    "vllm:generation_tokens_total": "fiddler_generation_tokens_total",
    "vllm:prefix_cache_queries_total": "fiddler_prompt_tokens_total",
    "vllm:prefix_cache_hits_total": "fiddler_cached_prompt_tokens_total",
}
_SUCCESS = "vllm:request_success_total"
# vLLM's reasons; both of eos and stop are its stop
_FINISHED_REASONS = {"stop": "eos|stop", "length": "length", "abort": "cancelled|deadline"}
_NAMED = '* on (job, instance) group_left (model_name) fiddler_build_info{service="gpu_service"}'
_HEAD = """\
# vLLM's names for what the GPU service counts, with its label model_name. `make observability` writes this file.
groups:
  - name: fiddler_vllm_names
    rules:
"""

VLLM_NAMES: dict[str, str] = {
    **_OTHERS,
    _SUCCESS: "fiddler_requests_total",
    **_HISTOGRAMS,
}
"""What each of vLLM's metrics is made of. Histograms have the usual suffixes."""


def vllm_rules() -> str:
    """The text of the file of rules."""
    rules = [(name, f"({expression}) {_NAMED}") for name, expression in _OTHERS.items()]
    for name, ours in _HISTOGRAMS.items():
        rules += [(f"{name}_{part}", f"{ours}_{part} {_NAMED}") for part in ("bucket", "sum", "count")]
    text = _HEAD + "".join(_rule(name, expression) for name, expression in rules)
    for reason, ours in _FINISHED_REASONS.items():
        ended = f'sum by (job, instance) (fiddler_requests_total{{finish_reason=~"{ours}"}})'
        text += _rule(_SUCCESS, f"({ended}) {_NAMED}", f"        labels: {{finished_reason: {reason}}}\n")
    return text


def _rule(name: str, expression: str, labels: str = "") -> str:
    return f"      - record: {name}\n{labels}        expr: >-\n          {expression}\n"
