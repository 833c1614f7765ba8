"""Metrics that no dashboard shows, each with the reason."""

_SAME = "the rows of fiddler_expert_call_rows, summed"
_OTHER_END = "the same bytes as fiddler_expert_call_bytes_total, counted at the other end"
_PYTHON = "of use to who looks into the process itself, not to who runs it"

UNPLOTTED = {
    "fiddler_expert_rows_total": _SAME,
    "fiddler_expert_received_bytes_total": _OTHER_END,
    "fiddler_expert_sent_bytes_total": _OTHER_END,
    "process_virtual_memory_bytes": "maps the whole checkpoint, so that it says nothing of memory in use",
    "process_start_time_seconds": _PYTHON,
    "process_open_fds": _PYTHON,
    "process_max_fds": _PYTHON,
    "python_gc_objects_collected_total": _PYTHON,
    "python_gc_objects_uncollectable_total": _PYTHON,
    "python_gc_collections_total": _PYTHON,
    "python_info": "fiddler_build_info tells the version",
}
