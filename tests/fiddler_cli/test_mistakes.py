"""What people do wrong first, typed after `fiddler`: one sentence on standard error, the exit status, no traceback.

The command runs in this process, where its imports are done once. tests/end_to_end/test_mistakes.py and test_wheel.py
start processes.
"""

import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cpu_expert_service.__main__
import gpu_service.__main__
from fiddler import host_memory, logs
from fiddler_cli.__main__ import main
from gpu_service.startup import device, read_bandwidth
from tests.fiddler.hub.conftest import hub, older, published  # noqa: F401 - fixtures
from tests.fiddler.machine.test_gpus import CASES
from tests.support.hub import Hub
from tests.support.mistaken_paths import MISTAKES
from tests.support.pairs import DEMO
from tests.support.ports import free_port

_ADDRESSES = ("--listen", "--http-listen", "--gpu-metrics-port", "--cpu-metrics-port")
Said = Callable[..., str]
READERS = {
    "serve": ("serve", "{model}"),
    "inspect": ("inspect", "{model}"),
    "bench": ("bench", "{model}"),
    "profile": ("profile", "{model}", "--prompts", "{prompts}", "--out", "{out}"),
    "convert": ("convert", "{model}", "{out}", "--experts", "int4"),
}
"""The subcommands that read a model, with what they need besides."""
WITHOUT_A_TOKENIZER = (
    "{model}: cannot read the tokenizer: it has none: no tokenizer.json and no tokenizer.model; add the tokenizer.json "
    "of the same vocabulary, from the model's repository or from one that converted it"
)


@pytest.fixture
def said(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a subcommand that must fail, and returns the sentence that it says last, after so many lines of progress."""
    (tmp_path / "prompts").write_text("It was\n")
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than the rest in a process that has imported torch

    def run(command: str, model: Path | str, *more: str, notes: int = 0) -> str:
        places = {"model": str(model), "prompts": str(tmp_path / "prompts"), "out": str(tmp_path / "out")}
        assert main([*(word.format(**places) for word in READERS[command]), *more]) == 1
        output, error = capfd.readouterr()
        assert output == ""
        *before, last = error.splitlines()
        assert len(before) == notes, error
        assert last.startswith("fiddler: "), error
        return last.removeprefix("fiddler: ")

    return run


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        *(("serve", name) for name in MISTAKES if name != "a model's name"),
        *((command, name) for command in READERS for name in ("a GGUF file", "PyTorch's files") if command != "serve"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(command: str, mistake: str, tmp_path: Path, said: Said) -> None:
    make, text = MISTAKES[mistake]
    path = make(tmp_path / "model")
    assert said(command, path).startswith(text.format(path=path))


@pytest.mark.parametrize("command", READERS)
def test_a_checkpoint_without_a_tokenizer_is_told_before_anything_starts(
    command: str, tmp_path: Path, said: Said
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(DEMO / name)
    if command == "convert":  # which needs none
        assert main([word.format(model=tmp_path, out=tmp_path / "out") for word in READERS[command]]) == 0
    else:
        assert said(command, tmp_path) == WITHOUT_A_TOKENIZER.format(model=tmp_path)


@pytest.mark.parametrize(
    ("command", "model", "text"),
    [
        *((command, "acme/none", "has no model acme/none, or it is private: check the name") for command in READERS),
        ("serve", "acme/tiny@v9", "acme/tiny@v9: acme/tiny has no revision v9 on http://127"),
        ("serve", "acme/gated", "acme/gated is gated: accept its terms "),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    command: str,
    model: str,
    text: str,
    hub: Hub,  # noqa: F811
    said: Said,
) -> None:
    assert text in said(command, model, notes=1)  # that it looks on the hub


@pytest.mark.parametrize(
    ("variable", "value", "notes", "text"),
    [
        ("HF_ENDPOINT", "http://127.0.0.1:1", 1, "127.0.0.1:1 cannot be reached "),
        ("HF_HUB_OFFLINE", "1", 0, "acme/tiny is not whole in "),
    ],
)
def test_a_name_without_a_network_is_one_sentence(
    variable: str,
    value: str,
    notes: int,
    text: str,
    hub: Hub,  # noqa: F811
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert text in said("serve", "acme/tiny", notes=notes)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("flag", _ADDRESSES)
def test_a_port_in_use_is_told_with_who_has_it(flag: str, taken: int, said: Said) -> None:
    ports = {name: free_port() for name in _ADDRESSES} | {flag: taken}
    addresses = {name: f"127.0.0.1:{port}" if name.endswith("listen") else port for name, port in ports.items()}
    text = said("serve", "demo", *(f"{name}={value}" for name, value in addresses.items()))
    assert text.startswith(f"{flag}: cannot serve on 127.0.0.1:{taken}: Address already in use, by process ")
    assert text.endswith("; stop it, or choose another port")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a service's main, and returns its exit status, what it prints and what it says."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    monkeypatch.setattr(logs, "_writers", [])  # the log goes where standard error is now

    def run(module: ModuleType, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, "--model", str(DEMO), "--log-level", "error", *arguments])
        return module.main(), *capfd.readouterr()

    return run


@pytest.mark.parametrize("reason", CASES)
def test_a_gpu_that_cannot_be_used_is_told_with_what_helps(
    reason: str, service: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of machines that are pretended: without a driver, with an old one, with a GPU that is too old."""
    case = CASES[reason]
    monkeypatch.setattr(device, "read_build", lambda torch: case.build)
    monkeypatch.setattr(device, "read_nvidia", lambda: case.nvidia)
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    status, output, error = service(gpu_service.__main__, "--device", "cuda", "--dry-run")
    assert (status, output) == (1, "")
    assert error.startswith(f"gpu_service: --device: PyTorch finds no CUDA device that it can use: {case.text}")
    assert error.endswith(". Or set --device cpu\n")
    assert error.count("\n") == 1


def test_too_little_memory_is_told_with_what_fits(
    service: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_bandwidth, "host_bytes_per_second", lambda: 1e9)
    monkeypatch.setattr(host_memory, "_machine", lambda root: (8 << 20, 5 << 20))
    status, output, error = service(gpu_service.__main__, "--device", "cpu", "--dry-run", "--kv-memory", "0.001")
    assert (status, error) == (0, "")
    assert "9 MiB of experts, and 5 MiB are free: too little, so experts would be read from the disk" in output
    assert "; --expert-format int8 or int4 serves a copy, converted once, of 4.5 MiB or 2.531 MiB" in output
    status, output, error = service(gpu_service.__main__, "--device", "cpu", "--dry-run", "--kv-memory", "1")
    assert (status, output) == (1, "")
    assert error.startswith(
        "gpu_service: --kv-memory: keys and values need 32 MiB, and 5 MiB are free of the 8 MiB of "
    )
    places = ("--listen", f"127.0.0.1:{free_port()}", "--metrics-port", "0", "--weights", "ram")
    status, output, error = service(cpu_expert_service.__main__, *places)
    assert (status, output) == (1, "")
    assert error.startswith("cpu_expert_service: --weights ram: copies of the experts need 9 MiB, and 5 MiB are free ")
    assert "set --weights mmap, which reads them from the page cache" in error
