"""The router SMG in front of two pairs, called by openai and anthropic. One pair is killed under load."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from client import Client
from pair import Pair
from tests.support.interop_python import ENVIRONMENT, FOLDER, PYTHON, needs_environment, result
from tests.support.pairs import DEMO, start
from tests.support.ports import free_port

pytestmark = needs_environment
START_SECONDS = 90.0
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


class Routed(NamedTuple):
    """Two pairs, and the URL of the router before them."""

    pairs: list[Pair]
    url: str


@contextmanager
def _router(pairs: list[Pair], log: Path) -> Iterator[str]:
    port = free_port()
    command = [str(PYTHON.with_name("smg")), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(free_port()), "--policy", "round_robin", "--worker-urls"]
    command += [f"grpc://{pair.target}" for pair in pairs]
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=file)
        try:
            _wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once the router has the pairs' tokenizer and answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx2.post(f"{url}/v1/chat/completions", json=BODY, timeout=30).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.3)
    pytest.fail(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    with ExitStack() as stack:
        pairs = [stack.enter_context(start(DEMO, "--vllm-engine")) for _ in range(2)]
        log = tmp_path_factory.mktemp("router") / "log"
        yield Routed(pairs, stack.enter_context(_router(pairs, log)))


def test_openai_and_anthropic_get_the_pairs_own_answer(routed: Routed) -> None:
    with Client(routed.pairs[0].target) as client:
        expected = client.chat([{"role": "user", "content": "Hello"}], max_tokens=12, temperature=0).text()
    found = result("router_client.py", routed.url, "both")
    assert [text.strip() for text in found["texts"]] == [expected.strip()] * 4
    assert found["usage"] == [12, 12]
    assert found["stop_reason"] == "max_tokens"


def test_both_pairs_answer_and_requests_go_on_when_one_is_killed(routed: Routed) -> None:
    command = [str(PYTHON), "router_client.py", f"{routed.url}/v1", "load"]
    with subprocess.Popen(command, cwd=FOLDER, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = [json.loads(process.stdout.readline()) for _ in range(8)]
        routed.pairs[0].stop("gpu_service", signal.SIGKILL)
        *after, last = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    outcomes = last["outcomes"]
    assert before == [""] * 8
    assert before + after == outcomes
    assert sum(map(bool, outcomes)) <= 4, outcomes  # those that the killed pair was answering
    assert outcomes[-20:] == [""] * 20
