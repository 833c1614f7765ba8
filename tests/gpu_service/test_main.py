"""What `python -m gpu_service` and `python -m gpu_service.profile` report when they cannot start."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from gpu_service import __main__ as service
from gpu_service.errors import FlagError, HandshakeError
from gpu_service.profile import __main__ as profile
from gpu_service.profile import count
from gpu_service.settings import Settings
from gpu_service.startup import dry_run, model
from gpu_service.startup.device_memory import out_of_memory_reported

_FAULTS = [ValueError("planted"), RuntimeError("planted"), OSError("planted")]
_PLANTED = """
import sys
from gpu_service import __main__ as service
from gpu_service.startup import model

def fail(*arguments, **named):
    raise ValueError("planted")

model.load_model = fail
sys.exit(service.main())
"""
"""The service, with a fault in a function that the start calls in a thread."""


def _raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[[Exception], int]:
    """Runs the service's main, whose dry run fails; returns the exit status."""

    def run(error: Exception) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu_service", "--model", str(tiny), "--dry-run"])
        monkeypatch.setattr(dry_run, "report", _raising(error))
        return service.main()

    return run


@pytest.mark.parametrize("error", _FAULTS, ids=repr)
def test_a_fault_of_the_program_is_not_caught(error: Exception, start: Callable[[Exception], int]) -> None:
    with pytest.raises(type(error), match="planted"):
        start(error)


def test_a_fault_of_the_program_at_the_start_shows_its_traceback(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PLANTED, "--model", str(tiny), "--device", "cpu", "--metrics-port", "0"]
    command += ["--listen", f"unix:{tmp_path}/g.sock", "--experts", f"unix:{tmp_path}/e.sock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "Traceback (most recent call last):\n" in done.stderr
    assert done.stderr.endswith("\nValueError: planted\n")


@pytest.mark.parametrize("error", _FAULTS, ids=repr)
def test_a_fault_of_the_profile_command_is_not_caught(
    error: Exception, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("one\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["profile", "--model", str(tiny), "--device", "cpu", *files])
    monkeypatch.setattr(count, "load_model", _raising(error))
    with pytest.raises(type(error), match="planted"):
        profile.main()


@pytest.mark.parametrize(
    "error",
    [FlagError("planted"), HandshakeError("planted"), FileNotFoundError(2, "planted", "weights")],
    ids=repr,
)
def test_what_a_user_can_put_right_is_one_line(
    error: Exception, start: Callable[[Exception], int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(error) == 1
    assert capfd.readouterr().err == f"gpu_service: {error}\n"


def test_a_fault_while_the_first_tokens_are_computed_is_not_taken_for_the_users(tiny: Path) -> None:
    class Broken:
        device = torch.device("cpu")
        cache: Any = type("Cache", (), {"set_capacity": _raising(RuntimeError("a bug"))})

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        model.warm_up(Settings(model=tiny), Broken())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["device", "host"],
)
def test_a_device_without_enough_memory_is_told_with_its_flag(error: RuntimeError) -> None:
    with (
        pytest.raises(FlagError, match=r"^--device: cpu has too little memory for the model: "),
        out_of_memory_reported(torch.device("cpu"), "the model"),
    ):
        raise error
