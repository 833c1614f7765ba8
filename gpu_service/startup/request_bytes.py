"""How large a caller's message may be: far smaller than one to the CPU expert service, which holds hidden rows."""

from collections.abc import Mapping
from typing import Any

from gpu_service.settings import Settings

LEAST_BYTES = 4 * 2**20
"""gRPC's own default."""
_TOKEN_BYTES = 128
"""More than a token's average in any text: few vocabularies have a longer token, which is a run of spaces."""

_MOST_FACTOR = 1000


def max_request_bytes(settings: Settings, config: Mapping[str, Any]) -> int:
    """The largest message to accept from a caller: 4 MiB, or more if the longest prompt may need it.

    Args:
        settings: The user's; --max-request-bytes may name another number.
        config: The content of config.json, which has the model's own context.
    """
    if settings.max_request_bytes != "auto":
        return settings.max_request_bytes
    return min(max(LEAST_BYTES, _context(settings, config) * _TOKEN_BYTES), settings.max_message_bytes)


def _context(settings: Settings, config: Mapping[str, Any]) -> int:
    """The most tokens of a prompt, as far as the settings and config.json tell before the model is loaded."""
    asked = settings.max_context
    limits = [_own_context(section) for section in (config, *config.values()) if isinstance(section, Mapping)]
    known = max(limits, default=0)
    if asked == "auto":
        return known
    return min(asked, known) if known else asked


def _own_context(section: Mapping[str, Any]) -> int:
    """The context of a section of config.json, with the factor by which RoPE scales it; 0 if it has none."""
    limit = section.get("max_position_embeddings")
    scaling = section.get("rope_scaling") or section.get("rope_parameters")
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    if not isinstance(limit, int):
        return 0
    return int(limit * factor) if isinstance(factor, int | float) and 1 < factor < _MOST_FACTOR else limit
