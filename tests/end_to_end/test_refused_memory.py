"""What callers send and do not get takes little memory, for a short time. The service is measured before any of it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from fiddler.v1 import generation_pb2_grpc
from fiddler.v1.generation_pb2 import DetokenizeRequest, GenerateRequest, GetServerInfoRequest, TokenizeRequest
from pair import Pair
from tests.support.calls import connect

MIB = 2**20
LIMIT_BYTES = 4 * MIB
KEPT_BYTES = 64 * MIB
NUM_CALLERS = 20
NUM_REQUESTS = 20  # of each kind: 5 times KEPT_BYTES together
_WAIT_SECONDS = 30
FLOAT32 = ("--dtype", "float32")
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
Stub = generation_pb2_grpc.GenerationServiceStub


@pytest.fixture
def pair(tiny: Path) -> Iterator[Pair]:
    """One of its own, which nothing has been asked of yet, and which was not forked from a process with a past."""
    gpu_arguments = ("--device", "cpu", *FLOAT32)
    with Pair(tiny, gpu_arguments=gpu_arguments, cpu_arguments=FLOAT32) as running:
        yield running


@pytest.fixture
def service(pair: Pair) -> psutil.Process:
    return psutil.Process(pair.processes["gpu_service"].pid)


@contextmanager
def _peak_of(service: psutil.Process) -> Iterator[list[int]]:
    """The most resident bytes meanwhile, in a list of one number."""
    peak, enough = [0], threading.Event()

    def watch() -> None:
        while not enough.wait(0.01):
            peak[0] = max(peak[0], service.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        enough.set()
        watching.join()


def _refuse_all(pair: Pair, calls: list[Callable[[Stub], object]]) -> set[grpc.StatusCode]:
    """The statuses of calls by callers that have a connection each."""

    def refuse(call: Callable[[Stub], object]) -> grpc.StatusCode:
        with connect(pair.target) as stub, pytest.raises(grpc.RpcError) as raised:
            call(stub)
        return raised.value.code()

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        return set(callers.map(refuse, calls))


def _assert_little_is_kept(service: psutil.Process, before: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while (kept := service.memory_info().rss - before) > KEPT_BYTES:
        assert time.monotonic() < deadline, f"{kept / MIB:.0f} MiB are kept"
        time.sleep(0.1)


def test_refused_requests_leave_nothing_behind(pair: Pair, service: psutil.Process) -> None:
    before = service.memory_info().rss
    with connect(pair.target) as stub:
        assert stub.GetServerInfo(GetServerInfoRequest()).limits.max_message_bytes == LIMIT_BYTES
    far_too_long = GenerateRequest(text="x" * 60 * MIB)
    just_parsed = "x" * (LIMIT_BYTES - 100)
    with _peak_of(service) as peak:
        assert _refuse_all(pair, [lambda stub: list(stub.Generate(far_too_long))] * NUM_REQUESTS) <= REFUSED
        _assert_little_is_kept(service, before)
    # a message that is too long is refused by its first bytes, so that all callers together take less than two may
    assert peak[0] - before < 2 * LIMIT_BYTES
    with _peak_of(service) as peak:
        for call in (
            lambda stub: list(stub.Generate(GenerateRequest(text=just_parsed))),
            lambda stub: stub.Tokenize(TokenizeRequest(text=just_parsed)),
            lambda stub: stub.Detokenize(DetokenizeRequest(token_ids=[5] * (LIMIT_BYTES - 100))),
        ):
            assert _refuse_all(pair, [call] * NUM_REQUESTS) == {grpc.StatusCode.INVALID_ARGUMENT}
            _assert_little_is_kept(service, before)
    # a message, gRPC's copy of it, and token ids of one byte each, which take four once they are parsed
    assert peak[0] - before < 6 * LIMIT_BYTES * NUM_CALLERS
