"""What `python -m cpu_expert_service` reports if it cannot start."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from cpu_expert_service import __main__ as service
from cpu_expert_service import server
from cpu_expert_service.kernel_choice import KernelError
from cpu_expert_service.ram import NotEnoughMemoryError
from fiddler import host_memory
from fiddler.checkpoint import Checkpoint
from fiddler.errors import UserError
from fiddler.kernels.cpus import CpuListError
from fiddler.kernels.native import NativeError
from fiddler.sizes import format_bytes
from tests.support import processes

PLANTED = """
import sys
from cpu_expert_service import __main__ as service, server

def fail(*arguments):
    raise ValueError("planted")

server.build_kernel = fail
sys.exit(service.main())
"""
"""The service, with a fault in what a start calls."""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[[Exception], int]:
    """Runs the service's main, whose server raises; returns the exit status."""

    def run(error: Exception) -> int:
        def fail(*_: object) -> NoReturn:
            raise error

        monkeypatch.setattr(sys, "argv", ["cpu_expert_service", "--model", str(tiny)])
        monkeypatch.setattr(server, "run", fail)
        return service.main()

    return run


@pytest.mark.parametrize(
    "error",
    [ValueError("planted"), RuntimeError("planted"), OSError("planted"), NativeError("planted")],
    ids=repr,
)
def test_a_fault_of_the_program_is_not_caught(error: Exception, start: Callable[[Exception], int]) -> None:
    with pytest.raises(type(error), match="planted"):
        start(error)


def test_a_fault_of_the_program_at_the_start_shows_its_traceback(tiny: Path, tmp_path: Path) -> None:
    with processes.start(tiny, f"unix:{tmp_path}/experts.sock", code=PLANTED) as process:
        outcome = process.outcome()
    assert outcome.status == 1
    assert "Traceback (most recent call last):\n" in outcome.errors
    assert outcome.errors.endswith("\nValueError: planted\n")


@pytest.mark.parametrize(
    "error",
    [
        *(kind("planted") for kind in (UserError, CpuListError, KernelError, NotEnoughMemoryError)),
        FileNotFoundError(2, "planted", "weights"),
    ],
    ids=repr,
)
def test_what_a_user_can_put_right_is_one_line(
    error: Exception, start: Callable[[Exception], int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(error) == 1
    assert capfd.readouterr().err == f"cpu_expert_service: {error}\n"


@pytest.mark.parametrize("total", [10**6, 10**3])
def test_experts_that_do_not_fit_the_limit_are_warned_of(
    total: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(total, total))
    checkpoint = Checkpoint.open(tiny)
    with structlog.testing.capture_logs() as logs:
        server._warn_of_short_memory(checkpoint)
    sizes = {"experts": format_bytes(checkpoint.expert_bytes), "memory": format_bytes(total)}
    assert [{name: log[name] for name in sizes} for log in logs] == ([sizes] if total == 10**3 else [])
