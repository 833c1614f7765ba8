"""Metrics that no dashboard shows, with the reasons."""

_SAME = "the rows of fiddler_expert_call_rows, summed"
_OTHER_END = "the same bytes as fiddler_expert_call_bytes_total, counted at the other end"
_PYTHON = "useful for debugging the process, not for operating it"

UNPLOTTED = {
    "fiddler_expert_resident": "too many for a screen; fiddler_expert_band_resident_ratio shows the same by band",
    "fiddler_tls_certificate_expiry_timestamp_seconds": "a date; FiddlerCertificateExpires fires a week before it",
    "fiddler_expert_rows_total": _SAME,
    "fiddler_expert_received_bytes_total": _OTHER_END,
    "fiddler_expert_sent_bytes_total": _OTHER_END,
    "fiddler_log_lines_dropped_total": "0 unless the log's reader stalls, and the log says it when it is read again",
    "process_virtual_memory_bytes": "includes the mapped checkpoint, so it does not show memory in use",
    "process_start_time_seconds": _PYTHON,
    "process_open_fds": _PYTHON,
    "process_max_fds": _PYTHON,
    "python_gc_objects_collected_total": _PYTHON,
    "python_gc_objects_uncollectable_total": _PYTHON,
    "python_gc_collections_total": _PYTHON,
    "python_info": "fiddler_build_info has the version",
}
