"""A service's process: defaults that the environment overrides."""

import subprocess
import sys

import pytest

from fiddler import process
from tests.support.pages import ROOT

NAMES = ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY", "OMP_WAIT_POLICY")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unset_gets_a_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    process.prepare()
    assert environment[name]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_environment_says_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: "mine"}
    monkeypatch.setattr("os.environ", environment)
    process.prepare()
    assert environment[name] == "mine"


HANGS = """
import sys, threading
from fiddler import process
timer = process.exit_after(0.1, 3, lambda: {log})
if {cancel}:
    timer.cancel()
threading.Thread(target=threading.Event().wait, args=({seconds},)).start()
"""


@pytest.mark.parametrize(
    ("log", "cancel", "status", "logged"),
    [
        ("print('hangs', flush=True)", False, 3, b"hangs\n"),
        ("threading.Event().wait()", False, 3, b""),
        ("print('hangs', flush=True)", True, 0, b""),
    ],
)
def test_a_process_whose_threads_hang_ends(log: str, cancel: bool, status: int, logged: bytes) -> None:
    program = HANGS.format(log=log, cancel=cancel, seconds=0.5 if cancel else 60)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (status, logged)
