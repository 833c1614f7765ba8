"""TLS, mutual TLS and tokens, through real processes: who may call, and what others receive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client, ClientError, InvalidRequestError, UnauthenticatedError, UnavailableError
from client.health import ask_health
from client.health import main as health_main
from pair import Pair
from tests.support.certificates import Authority, Identity
from tests.support.pairs import WarmPair

PROMPT = [3, 4, 5]
TOKEN, LISTED, LATER = "the-token-of-the-file", "the-token-of-the-environment", "a-token-that-comes-later"


@dataclass(frozen=True)
class Served:
    """A running GPU service."""

    target: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True)
class Files:
    """What a caller needs."""

    authority: Authority
    server: Identity
    client: Identity
    tokens: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("access")
    authority = Authority(directory)
    (directory / "tokens").write_text(f"# the first client\n{TOKEN}\n")
    return Files(
        authority,
        authority.identity("server", "127.0.0.1", "localhost"),
        authority.identity("client"),
        directory / "tokens",
    )


@contextmanager
def _gpu_service(model: Path, experts: str, log: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """A separate GPU service, not yet ready, at another pair's CPU expert service."""
    flags = ("--device", "cpu", "--dtype", "float32", "--experts", experts, *arguments)
    with log.open("wb") as file:
        beside = WarmPair(model, gpu_arguments=flags, log=file, environment=environment)
        try:
            yield Served(beside.target, beside.start("gpu_service"), log)
        finally:
            beside.close()


@pytest.fixture(scope="module")
def services(tiny: Path, pair: Pair, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """A service with TLS that requires a token, and one with mutual TLS."""
    logs = tmp_path_factory.mktemp("logs")
    encrypted = ("--tls-cert", str(files.server.certificate), "--tls-key", str(files.server.key))
    asks_for_tokens = ("--tokens-file", str(files.tokens))
    is_mutual = ("--tls-client-ca", str(files.authority.certificate))
    with (
        _gpu_service(
            tiny, pair.experts, logs / "a", *encrypted, *asks_for_tokens, FIDDLER_GPU_TOKENS=f"{LISTED},another"
        ) as first,
        _gpu_service(tiny, pair.experts, logs / "b", *encrypted, *is_mutual) as second,
    ):
        _wait_until_serving(first, tls_ca=files.authority.certificate)
        _wait_until_serving(
            second,
            tls_ca=files.authority.certificate,
            tls_cert=files.client.certificate,
            tls_key=files.client.key,
        )
        yield [first, second]


def _wait_until_serving(served: Served, **tls_files: Path) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert served.process.poll() is None, served.log.read_text()
        try:
            if ask_health(served.target, **tls_files) == "SERVING":  # type: ignore[arg-type]
                return
        except ClientError:
            assert time.monotonic() < deadline, served.log.read_text()
        time.sleep(0.05)


@pytest.fixture
def guarded(services: list[Served]) -> Served:
    return services[0]


@pytest.fixture
def mutual(services: list[Served]) -> Served:
    return services[1]


@pytest.mark.parametrize("token", [TOKEN, LISTED])
def test_a_token_over_tls_opens(guarded: Served, files: Files, token: str) -> None:
    with Client(guarded.target, tls_ca=files.authority.certificate, token=token) as client:
        assert client.generate(PROMPT, max_tokens=3).text()
        assert client.server_info().max_slots > 0


@pytest.mark.parametrize(("token", "problem"), [(None, "it has no token"), (f"{TOKEN}x", "its token is not valid")])
def test_no_token_and_a_wrong_one_are_refused(guarded: Served, files: Files, token: str | None, problem: str) -> None:
    with Client(guarded.target, tls_ca=files.authority.certificate, token=token) as client:
        with pytest.raises(UnauthenticatedError, match=problem):
            client.generate(PROMPT, max_tokens=3).text()
        with pytest.raises(UnauthenticatedError, match=problem):
            client.model_info()


def test_health_needs_no_token(guarded: Served, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert health_main([guarded.target, "--tls-ca", str(files.authority.certificate)]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_the_command_line_is_let_in_and_refused(guarded: Served, files: Files) -> None:
    command = [sys.executable, "-m", "client", "a", "--max-tokens", "3", "--target", guarded.target]
    command += ["--tls-ca", str(files.authority.certificate)]
    environment = {**os.environ, "FIDDLER_TOKEN": TOKEN}
    runs = [
        subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for arguments, env in (
            (command, environment),
            ([*command, "--token-file", str(files.tokens)], {**os.environ}),
            (command, {**os.environ, "FIDDLER_TOKEN": "wrong"}),
        )
    ]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 6]
    assert outputs[0][0]
    assert outputs[2][1].startswith(b"client: the call is refused: its token is not valid")
    assert outputs[2][1].count(b"\n") == 1


def test_plaintext_to_a_port_with_tls_gets_nowhere(guarded: Served) -> None:
    with Client(guarded.target, token=TOKEN) as client, pytest.raises(UnavailableError):
        client.generate(PROMPT, max_tokens=3, timeout=20).text()


def test_tls_to_a_port_without_gets_nowhere(pair: Pair, files: Files) -> None:
    with Client(pair.target, tls_ca=files.authority.certificate) as client, pytest.raises(UnavailableError):
        client.generate(PROMPT, max_tokens=3, timeout=20).text()


def test_a_server_of_another_authority_or_name_is_not_believed(guarded: Served, files: Files, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    with Client(guarded.target, tls_ca=stranger.certificate, token=TOKEN) as client, pytest.raises(UnavailableError):
        client.model_info(timeout=20)
    believed = {"tls_ca": files.authority.certificate, "token": TOKEN}
    with Client(guarded.target, **believed, tls_server_name="localhost") as client:  # type: ignore[arg-type]
        client.model_info(timeout=20)
    misnamed = Client(guarded.target, **believed, tls_server_name="elsewhere")  # type: ignore[arg-type]
    with misnamed as client, pytest.raises(UnavailableError):
        client.model_info(timeout=20)


def test_mutual_tls_lets_in_who_has_a_certificate(mutual: Served, files: Files) -> None:
    own = {"tls_ca": files.authority.certificate, "tls_cert": files.client.certificate, "tls_key": files.client.key}
    with Client(mutual.target, **own) as client:  # type: ignore[arg-type]
        assert client.generate(PROMPT, max_tokens=3).text()


def test_mutual_tls_keeps_out_who_has_none_or_a_strangers(mutual: Served, files: Files, tmp_path: Path) -> None:
    with Client(mutual.target, tls_ca=files.authority.certificate) as client, pytest.raises(UnavailableError):
        client.model_info(timeout=20)
    strangers = Authority(tmp_path, "stranger").identity("someone")
    theirs = {"tls_cert": strangers.certificate, "tls_key": strangers.key}
    client = Client(mutual.target, tls_ca=files.authority.certificate, **theirs)  # type: ignore[arg-type]
    with client, pytest.raises(UnavailableError):
        client.model_info(timeout=20)


def test_tokens_are_read_anew_at_a_hangup_signal(guarded: Served, files: Files) -> None:
    def is_let_in(token: str) -> bool:
        with Client(guarded.target, tls_ca=files.authority.certificate, token=token) as client:
            try:
                client.model_info()
            except UnauthenticatedError:
                return False
        return True

    before = files.tokens.read_text()
    try:
        files.tokens.write_text(LATER)
        guarded.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while not is_let_in(LATER):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not is_let_in(TOKEN)
        assert is_let_in(LISTED)
    finally:
        files.tokens.write_text(before)
        guarded.process.send_signal(signal.SIGHUP)


def test_the_log_tells_of_refusals_and_of_no_token(guarded: Served, files: Files) -> None:
    client = Client(guarded.target, tls_ca=files.authority.certificate, token="a-guess")
    with client, pytest.raises(UnauthenticatedError):
        client.model_info()
    log = guarded.log.read_text()
    assert "call refused" in log
    assert "GetModelInfo" in log
    assert not any(token in log for token in (TOKEN, LISTED, LATER, "a-guess"))


def test_the_client_sends_no_token_in_the_clear_to_another_host() -> None:
    with pytest.raises(InvalidRequestError, match=r"is not sent to 192\.0\.2\.1:50051 unencrypted") as raised:
        Client("192.0.2.1:50051", token=TOKEN)
    assert raised.value.field == "token"
    assert TOKEN not in raised.value.message


def test_a_wrong_file_is_named_in_a_line(tiny: Path, pair: Pair, files: Files, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n")
    certificate, key = str(files.server.certificate), str(files.server.key)
    wrong: dict[tuple[str, ...], str] = {
        ("--tls-cert", str(tmp_path / "nothing.pem"), "--tls-key", key): "--tls-cert: cannot read",
        ("--tls-cert", certificate, "--tls-key", str(files.client.key)): "is not the key of the certificate in",
        ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", key): "--tls-client-ca: ",
        ("--tokens-file", str(tmp_path / "empty")): "--tokens-file: ",
    }
    with ExitStack() as stack:
        started = [
            stack.enter_context(_gpu_service(tiny, pair.experts, tmp_path / f"log{number}", *arguments))
            for number, arguments in enumerate(wrong)
        ]
        for served, problem in zip(started, wrong.values(), strict=True):
            assert served.process.wait(60) == 1
            log = served.log.read_text()
            assert log.startswith("gpu_service: ")
            assert problem in log
            assert log.count("\n") == 1
