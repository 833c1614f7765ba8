"""Logging of a service: structlog's events on standard error, as text on a terminal and as JSON lines elsewhere."""

import logging
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager

import structlog

_REQUEST_IDS = "request_ids"


def configure(level: str, log_format: str) -> None:
    """Sets up structlog and the standard library's logging for this process.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: "console", "json", or "auto" for console on a terminal and JSON elsewhere.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    exceptions: list[structlog.typing.Processor] = [] if console else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def about_requests(request_ids: Iterable[str]) -> AbstractContextManager[None]:
    """Adds the names of requests to everything that this thread logs within the block."""
    ids = [request_id for request_id in request_ids if request_id]
    return structlog.contextvars.bound_contextvars(**({_REQUEST_IDS: ids} if ids else {}))


def requests_under_way() -> list[str]:
    """The names of the requests that this thread's work is for: those of `about_requests`."""
    ids: list[str] = structlog.contextvars.get_contextvars().get(_REQUEST_IDS, [])
    return ids
