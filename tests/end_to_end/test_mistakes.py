"""What people do wrong first, through the commands as they type them: one line with what helps, and the exit status.

Most of these end before torch is imported. tests/fiddler/checkpoint/test_first_look.py has the other kinds of paths.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from tests.support import command_lines
from tests.support.pairs import DEMO


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    """An address at which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("program", ["gpu_service", "cpu_expert_service", "pair"])
def test_a_gguf_file_is_no_checkpoint(program: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    done = command_lines.run(program, "--model", str(tmp_path / "a.gguf"))
    assert done.returncode == 1
    command_lines.assert_one_line(
        done.stderr, program, "a.gguf is a GGUF file", "`hf download ORG/NAME --local-dir DIR`"
    )


@pytest.mark.parametrize("program", ["gpu_service", "cpu_expert_service"])
def test_a_port_in_use_is_told_before_anything_is_loaded(program: str, taken: str, tmp_path: Path) -> None:
    done = command_lines.run(program, "--model", str(DEMO), "--listen", taken, "--metrics-port", "0")
    assert done.returncode == 1
    text = f"--listen: cannot serve on {taken}: Address already in use, by process {os.getpid()} ("
    command_lines.assert_one_line(done.stderr, program, text, "stop it, or choose another port")


def test_an_adapter_without_its_base_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (tmp_path / "adapter_model.safetensors").touch()
    done = command_lines.run("gpu_service", "--model", str(tmp_path), "--dry-run")
    assert done.returncode == 1
    command_lines.assert_one_line(done.stderr, "gpu_service", "is an adapter for org/base, not a model: merge it")


def test_help_of_the_benchmarks_runs_none_of_them() -> None:
    done = command_lines.run("benchmarks", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout.decode() for name in NAMES)
    assert b"# hop" not in done.stderr


def test_a_benchmark_that_does_not_exist_is_told() -> None:
    done = command_lines.run("benchmarks", "hops")
    assert done.returncode == 2
    assert b"'hops' is no benchmark; known: hop, " in done.stderr


def test_ctrl_c_ends_the_demo_without_a_traceback_and_without_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        assert b"Starting both services" in demo.stdout.readline()
        os.killpg(demo.pid, signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, b"")
    assert list(tmp_path.iterdir()) == []


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("grpc", "typer"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
"""A program that Ctrl-C strikes when it begins to import what takes long."""


@pytest.mark.parametrize(
    "program",
    [
        *("client", "client.health", "client.top", "examples.demo", "fiddler.convert", "fiddler_checkup.bench"),
        *("fiddler_checkup.doctor", "fiddler_cli", "gpu_service.models", "pair"),
    ],
)
def test_ctrl_c_during_the_imports_has_no_traceback(program: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, program]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_a_thread_may_import_a_program() -> None:
    code = "import threading; thread = threading.Thread(target=lambda: __import__('client.health')); thread.start()"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.stderr == b""
