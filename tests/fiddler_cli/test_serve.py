"""`fiddler serve`: what it passes on, what it refuses before anything starts, and what it tells to type next."""

from pathlib import Path
from typing import Any

import pytest

from fiddler_cli import serve
from fiddler_cli.__main__ import main
from pair import PairError


class FakePair:
    """Takes a pair's arguments, and starts nothing."""

    made: "list[FakePair]" = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, model: Path, **options: Any) -> None:
        self.model, self.options = model, options
        self.made.append(self)


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(pair: FakePair, *, module: str, starting: str, serving: list[str]) -> int:
        pair.options["lines"] = [starting, *serving]
        return 0

    FakePair.made.clear()
    monkeypatch.setattr(serve, "SignalledPair", FakePair)
    monkeypatch.setattr(serve, "run_until_signalled", run)


def _served(*arguments: str) -> dict[str, Any]:
    assert main(["serve", "demo", *arguments]) == 0
    (pair,) = FakePair.made
    assert pair.model.name == "demo"
    return pair.options


def test_addresses_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIDDLER_GPU_LISTEN", "127.0.0.1:7001")
    monkeypatch.setenv("FIDDLER_CPU_METRICS_PORT", "7002")
    options = _served("--gpu-metrics-port", "7003", "--http-listen", "0.0.0.0:7004")
    assert (options["listen"], options["metrics_ports"]) == ("127.0.0.1:7001", (7003, 7002))
    assert options["http"] == "0.0.0.0:7004"
    assert "chat:     fiddler chat --target 127.0.0.1:7001" in options["lines"]
    assert "page:     http://127.0.0.1:7004" in options["lines"]


def test_settings_go_to_the_programs_that_have_them() -> None:
    options = _served(
        "--max-slots", "3", "--kernel", "pytorch", "--dtype", "float32", "--cors-origins", "*", "--no-http"
    )
    assert options["gpu_arguments"] == ["--dtype=float32", "--max-slots=3"]
    assert options["cpu_arguments"] == ["--dtype=float32", "--kernel=pytorch"]
    assert options["http_arguments"] == ["--cors-origins=*"]
    assert options["http"] is None
    assert len(options["lines"]) == 3, "no page"


def test_with_tls_and_tokens_the_hints_have_what_a_caller_needs(tmp_path: Path) -> None:
    tokens, certificate = tmp_path / "tokens", tmp_path / "server.pem"
    options = _served("--tokens-file", str(tokens), "--gpu-tls-cert", str(certificate), "--gpu-tls-key", "key")
    assert options["certificate"] == certificate
    assert f"--tokens-file={tokens}" in options["http_arguments"]
    assert f"chat:     fiddler chat --tls-ca {certificate} --token-file {tokens}" in options["lines"]


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["--max-slots", "many"], 2, "gpu_service: --max-slots: Input should be a valid integer"),
        (["--cpu-threads", "-1"], 2, "cpu_expert_service: --threads: Input should be greater than"),
        (["--http-listen", "unix:/tmp/x"], 2, "http_gateway: --listen: 'unix:/tmp/x' is a socket"),
        (["--tls-client-ca", "x.pem"], 2, "fiddler: --tls-client-ca: the HTTP gateway and the check"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(
    arguments: list[str], status: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "demo", *arguments]) == status
    assert capsys.readouterr().err.startswith(error)
    assert FakePair.made == []


def test_what_is_no_model_and_a_pair_that_cannot_be_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"fiddler: {tmp_path}/none does not exist")
    assert FakePair.made == []

    def refuse(pair: FakePair, model: Path, **options: Any) -> None:
        raise PairError("no directory for the socket")

    monkeypatch.setattr(FakePair, "__init__", refuse)
    assert main(["serve", "demo"]) == 1
    assert capsys.readouterr().err == "fiddler: no directory for the socket\n"
