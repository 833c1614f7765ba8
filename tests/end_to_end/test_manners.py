"""How the GPU service handles overload, callers that leave or do not read, and its own end, through real processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest

from client import (
    BusyError,
    Client,
    ClientError,
    Complete,
    DeadlineError,
    GenerateOptions,
    Generation,
    GenerationChunk,
    InvalidRequestError,
    RequestLimits,
    UnavailableError,
)
from client.health import ask_health
from fiddler.v1 import generation_pb2, generation_pb2_grpc
from pair import Pair
from tests.support import checkpoints
from tests.support.pairs import start

PROMPT = [3, 4, 5]
CONTEXT = 4096
LONG = 3800
SLOTS, WAITING = 2, 2
MESSAGE_BYTES = 2**20
STREAM_WINDOW_BYTES = 65536


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a long context."""
    directory = tmp_path_factory.mktemp("long")
    checkpoints.write("mixtral", directory, eos_token_id=None, max_position_embeddings=CONTEXT)
    checkpoints.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def crowded(model: Path) -> Iterator[Pair]:
    """A pair with few slots and low limits."""
    places = f"--max-slots {SLOTS} --max-waiting {WAITING} --max-context {CONTEXT}"
    limits = (
        f"--max-message-bytes {MESSAGE_BYTES} --max-tokens-limit {LONG} --max-n 1 --max-beams 2"
        " --max-stop-strings 1 --max-stop-bytes 4 --max-logprobs 20"
    )
    with start(model, *places.split(), *limits.split()) as pair:
        yield pair


@pytest.fixture
def client(crowded: Pair) -> Iterator[Client]:
    with Client(crowded.target) as client:
        yield client
        _wait_until_idle(client)


def _wait_until_idle(client: Client) -> None:
    _wait_for(lambda: not (info := client.server_info()).running_requests + info.waiting_requests)


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _fill(client: Client, num_running: int, num_waiting: int) -> list[Generation]:
    """Long generations in all slots."""
    generations = [client.generate(PROMPT, max_tokens=LONG) for _ in range(num_running + num_waiting)]
    _wait_for(
        lambda: ((info := client.server_info()).running_requests, info.waiting_requests) == (num_running, num_waiting)
    )
    return generations


def _ended(pair: Pair, finish_reason: str) -> float:
    """How many generations have ended that way."""
    with urlopen(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    name = f'fiddler_requests_total{{finish_reason="{finish_reason}",'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_full_queue_says_so_at_once_and_when_to_come_again(client: Client) -> None:
    generations = _fill(client, SLOTS, WAITING)
    with pytest.raises(BusyError, match="wait already") as raised:
        client.generate(PROMPT, max_tokens=3).text()
    assert raised.value.retry_after_seconds == 1.0
    info = client.server_info()
    assert (info.running_requests, info.waiting_requests) == (SLOTS, WAITING), "it was not kept until there was room"
    for generation in generations:
        generation.cancel()


def test_who_asks_again_as_told_gets_in(client: Client, crowded: Pair) -> None:
    expected = client.generate(PROMPT, max_tokens=3, temperature=0).text()
    generations = _fill(client, SLOTS, WAITING)
    with Client(crowded.target, retry_busy=True) as patient, ThreadPoolExecutor(1) as thread:
        before = _ended(crowded, "error")
        text = thread.submit(patient.generate(PROMPT, max_tokens=3, temperature=0).text)
        _wait_for(lambda: _ended(crowded, "error") > before)
        for generation in generations:
            generation.cancel()
        assert text.result(60) == expected


def test_four_times_as_many_as_there_are_places(client: Client, crowded: Pair) -> None:
    expected = client.generate(PROMPT, max_tokens=20, temperature=0).text()

    def ask(retry_busy: bool) -> str | None:
        with Client(crowded.target, retry_busy=retry_busy) as one_of_many:
            try:
                return one_of_many.generate(PROMPT, max_tokens=20, temperature=0, timeout=60).text()
            except BusyError:
                return None

    with ThreadPoolExecutor(4 * (SLOTS + WAITING)) as threads:
        texts = list(threads.map(ask, [False] * 4 * (SLOTS + WAITING)))
        served = [text for text in texts if text is not None]
        assert len(served) >= SLOTS + WAITING
        assert set(served) == {expected}
        assert list(threads.map(ask, [True] * 4 * (SLOTS + WAITING))) == [expected] * 4 * (SLOTS + WAITING)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": LONG + 1}, "max_tokens"),
        ({"n": 2, "temperature": 1.0}, "n"),
        ({"num_beams": 3}, "beam_search.num_beams"),
        ({"stop": ["a", "b"]}, "stop"),
        ({"stop": ["a long one"]}, "stop[0]"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ],
)
def test_what_is_over_a_limit_is_refused_by_its_field(client: Client, options: GenerateOptions, field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        client.generate(PROMPT, **options).text()
    assert raised.value.field == field


def test_the_limits_are_told(client: Client) -> None:
    assert client.server_info().limits == RequestLimits(LONG, 1, 2, 1, 4, 20, MESSAGE_BYTES, 65536)


def test_a_message_over_the_limit_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="larger than max"):
        client.generate("a" * (MESSAGE_BYTES + 1)).text()


def test_an_interrupt_of_the_command_line_ends_the_generation_on_the_server(client: Client, crowded: Pair) -> None:
    before = _ended(crowded, "cancelled")
    command = [sys.executable, "-m", "client", "a", "--target", crowded.target, "--max-tokens", str(LONG)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _wait_for(lambda: client.server_info().running_requests == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    _wait_until_idle(client)
    _wait_for(lambda: _ended(crowded, "cancelled") == before + 1)


def test_a_deadline_is_the_reason_and_frees_the_slot(client: Client, crowded: Pair) -> None:
    before = _ended(crowded, "deadline")
    with pytest.raises(DeadlineError):
        client.generate(PROMPT, max_tokens=LONG, timeout=0.5).text()
    _wait_until_idle(client)
    _wait_for(lambda: _ended(crowded, "deadline") == before + 1)


def test_a_reader_that_stops_is_ended_and_others_are_not_slowed(client: Client, crowded: Pair) -> None:
    expected = client.generate(PROMPT, max_tokens=5, temperature=0).text()
    errors_before = _ended(crowded, "error")
    # unread messages soon fill the stream's window, which must keep its size
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES)]
    with grpc.insecure_channel(crowded.target, options) as channel:
        request = generation_pb2.GenerateRequest(
            token_ids=generation_pb2.TokenIds(ids=PROMPT), max_tokens=LONG, logprobs=20
        )
        stalled: Any = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)
        next(stalled)
        while client.server_info().running_requests:  # it keeps its slot until too much is unread
            assert client.generate(PROMPT, max_tokens=5, temperature=0).text() == expected
            time.sleep(0.1)
        _wait_for(lambda: _ended(crowded, "error") == errors_before + 1)
        read: list[object] = []
        with pytest.raises(grpc.RpcError) as raised:
            read.extend(stalled)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "not read" in (raised.value.details() or "")
    assert 0 < len(read) < LONG, "what was sent before is there"


@pytest.fixture
def stopping(model: Path, crowded: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A separate GPU service with a grace period of so many seconds."""
    arguments = ("--experts", crowded.experts, "--max-slots", "8", "--max-context", str(CONTEXT))
    beside = start(model, *arguments, "--grace-seconds", str(request.param))
    try:
        beside.start("gpu_service")
        beside.wait_until_serving()
        yield beside
    finally:
        beside.close()


def _end_of(generation: Generation) -> Complete | ClientError:
    try:
        generation.text()
    except ClientError as error:
        return error
    assert generation.complete is not None
    return generation.complete


@pytest.mark.parametrize("stopping", [60], indirect=True)
def test_what_is_under_way_is_finished_before_the_service_ends(stopping: Pair) -> None:
    with Client(stopping.target, retry_unavailable=False) as client, ThreadPoolExecutor(12) as threads:
        generations = [client.generate(PROMPT, max_tokens=100, temperature=0) for _ in range(12)]
        for generation in generations[:8]:
            assert isinstance(next(generation), GenerationChunk)
        stopping.processes["gpu_service"].send_signal(signal.SIGTERM)
        _wait_for(lambda: ask_health(stopping.target) == "NOT_SERVING")
        with pytest.raises(UnavailableError, match="the service is stopping"):
            client.generate(PROMPT, max_tokens=3).text()
        ends = list(threads.map(_end_of, generations))
    assert [end.completion_tokens for end in ends if isinstance(end, Complete)] == [100] * 12
    assert stopping.processes["gpu_service"].wait(30) == 0


@pytest.mark.parametrize("stopping", [1], indirect=True)
def test_what_outlasts_the_grace_period_is_cut_short_and_told_so(stopping: Pair) -> None:
    with Client(stopping.target, retry_unavailable=False) as client, ThreadPoolExecutor(12) as threads:
        generations = _fill(client, 8, 4)
        ends = threads.map(_end_of, generations)
        stopping.processes["gpu_service"].send_signal(signal.SIGTERM)
        for end in ends:
            assert isinstance(end, UnavailableError)
            assert end.message == "the service is stopping"
        assert stopping.processes["gpu_service"].wait(30) == 0
