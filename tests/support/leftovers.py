"""Undoes what code leaves behind that has a process of its own, when a test runs it in the tests' process.

A service sets up logging, signal handlers, the environment, build information and PyTorch's threads for its whole life.
In the tests' process, which runs other files' tests afterwards, that would decide what they see.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from prometheus_client import REGISTRY, Info
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from structlog._config import BoundLoggerLazyProxy

from fiddler import logs

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PACKAGES = ("fiddler", "gpu_service", "cpu_expert_service", "client", "http_gateway", "pair")
_PYTESTS_OWN = "PYTEST_CURRENT_TEST"


@contextmanager
def undone() -> Iterator[None]:
    """Restores after the block what the block changed of the state that the module's docstring names."""
    environment = _environment()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    hook, writers = sys.excepthook, list(logs._writers)
    root = logging.getLogger()
    level, log_handlers = root.level, list(root.handlers)
    configuration = _structlog_configuration()
    collectors = set(REGISTRY._collector_to_names)
    threads = _num_threads()
    try:
        yield
    finally:
        _restore_environment(environment)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        sys.excepthook = hook
        logs._writers[:] = writers
        root.setLevel(level)
        root.handlers[:] = log_handlers
        _restore_structlog(configuration)
        for collector in set(REGISTRY._collector_to_names) - collectors:
            if _is_of_a_run(collector):
                REGISTRY.unregister(collector)
        if threads is not None and _num_threads() != threads:
            sys.modules["torch"].set_num_threads(threads)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != _PYTESTS_OWN}


def _restore_environment(before: dict[str, str]) -> None:
    now = _environment()
    for name in now.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if now.get(name) != value})


def _num_threads() -> int | None:
    """PyTorch's threads; None if nothing has imported it."""
    torch = sys.modules.get("torch")
    return None if torch is None or not hasattr(torch, "get_num_threads") else int(torch.get_num_threads())


def _is_of_a_run(collector: Collector) -> bool:
    """Whether a run of a service registered it; the others are declared by modules, which are imported once."""
    return isinstance(collector, Info) or not isinstance(collector, MetricWrapperBase)


def _structlog_configuration() -> dict[str, Any] | None:
    """None: its defaults."""
    return structlog.get_config() if structlog.is_configured() else None


def _restore_structlog(before: dict[str, Any] | None) -> None:
    now = _structlog_configuration()
    if now is None or (before is not None and now["processors"] is before["processors"]):
        return
    if before is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**before)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _PACKAGES:
            continue
        for value in vars(module).values():
            if isinstance(value, BoundLoggerLazyProxy):
                vars(value).pop("bind", None)  # the logger that it made at first
