"""Logging of a service: structlog's events on standard error, as text on a terminal and as JSON lines elsewhere.

Nothing waits until its line is written: if nobody reads the log, lines are dropped and counted.
"""

import atexit
import logging
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType

import structlog
from typing_extensions import override

from fiddler.metrics import LOG_LINES_DROPPED
from fiddler.running.log_writer import LogWriter
from fiddler.sizes import format_bytes

_FLUSH_SECONDS = 1.0
_log = structlog.get_logger(__name__)
_writers: list[LogWriter] = []
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
    last: list[structlog.typing.Processor] = [_with_units] if console else [structlog.processors.format_exc_info]
    handler = _Handler(_writer())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
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


def _with_units(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For people: what is counted in bytes is shown as MiB or GiB. JSON lines keep the numbers."""
    for name, value in event.items():
        if name.endswith("bytes") and isinstance(value, int):
            event[name] = format_bytes(value)
    return event


def flush(seconds: float = _FLUSH_SECONDS) -> None:
    """Waits until what was logged is written, but no longer than a time. To be called before os._exit."""
    for writer in _writers:
        writer.flush(seconds)


def say(text: str) -> None:
    """Writes a line that is no event, such as why the process ends, after all that was logged.

    It may wait for a second or two, but not for ever, if nobody reads it.
    """
    if not _writers:
        print(text, file=sys.stderr)
        return
    _writers[-1].write(text, wait_seconds=_FLUSH_SECONDS)
    flush()


class _Handler(logging.Handler):
    """Formats events where they happen, and hands them to the writer."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._writer.write(self.format(record)):
                LOG_LINES_DROPPED.inc()
        except Exception:
            self.handleError(record)


def _writer() -> LogWriter:
    """The writer for standard error, made once."""
    if not _writers:
        _writers.append(LogWriter(sys.stderr.fileno(), _report_dropped))
        atexit.register(flush)
        sys.excepthook = _print_after_the_log
    return _writers[0]


def _report_dropped(count: int) -> None:
    _log.warning("log lines dropped, since nobody read the log", count=count)


def _print_after_the_log(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    flush()
    sys.__excepthook__(kind, error, trace)


def about_requests(request_ids: Iterable[str]) -> AbstractContextManager[None]:
    """Adds the names of requests to everything that this thread logs within the block."""
    ids = [request_id for request_id in request_ids if request_id]
    return structlog.contextvars.bound_contextvars(**({_REQUEST_IDS: ids} if ids else {}))


def requests_under_way() -> list[str]:
    """The names of the requests that this thread's work is for: those of `about_requests`."""
    ids: list[str] = structlog.contextvars.get_contextvars().get(_REQUEST_IDS, [])
    return ids
