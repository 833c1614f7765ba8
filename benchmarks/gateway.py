"""`python -m benchmarks.gateway`: what the HTTP gateway costs beside gRPC, on models/demo.

gateway.first_token.grpc     ms from sending a short request until its first token, through gRPC
gateway.first_token.http     ms of the same through the gateway, which calls through gRPC itself
gateway.first_token.added    their difference, request by request
gateway.streamsN.grpc        tokens per second of N streams together, from the last one's first token to the first end
gateway.streamsN.http        the same through the gateway
gateway.streamsN.lost        the share of the tokens per second that the gateway loses, round by round

The ways take turns, and the one that began a pair ends the next, so that other load on the machine affects both alike.
A round of streams is two runs each way. No request has the prompt of another, so that neither way finds it computed.

The verdict is about the median. It is conclusive if medians of rounds that are drawn from these again (median_p10 to
median_p90) lie closer together than the median and its bound: a single round varies far more than the median of all.

The callers are in this process, and share its cores with services and gateway, as they do where all run on one host.
Each reads in the way of its kind that costs least: of gRPC the messages as protobuf, of HTTP the bytes, in which events
are counted and not parsed. Both count pieces of text, nearly one for each token, and keep their connections.
"""

import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Annotated, Self, cast

import typer
from typing_extensions import override

from benchmarks.harness.results import Append, Out, Quick, report
from benchmarks.harness.rounds import milliseconds
from benchmarks.harness.targets import Judge, Target
from client import AsyncClient
from fiddler.transport.ports import reserve
from pair import Pair
from tests.support.pairs import DEMO
from tools.command_line import run

_STREAMS = 16
_PROMPT_TOKENS = 12
_STREAM_TOKENS = 60
_FIRST_TOKENS = 4  # the first may be held back, as part of a character, until another one or the end
_PIECE = b'"finish_reason":null'
_END_OF_EVENT = b"\n\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
TARGETS = {
    "gateway.first_token.added": Target(1.0, at_least=False),
    f"gateway.streams{_STREAMS}.lost": Target(0.05, at_least=False),
}
Call = Callable[[list[int], int], Awaitable[list[float]]]
"""Generates a number of tokens after a prompt, and returns when each piece of text arrived."""


def main(
    out: Out = None,
    append: Append = False,
    requests: Annotated[int, typer.Option(help="Requests for the first token, each way.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Rounds of concurrent streams, each with two runs each way.")] = 80,
    quick: Quick = False,
) -> None:
    """Runs the benchmark."""
    if quick:
        requests, rounds = 10, 2
    device = ("--device", "cpu", "--max-slots", str(_STREAMS))
    with (
        report(out, append) as results,
        tempfile.TemporaryFile() as log,
        reserve() as held,
        Pair(DEMO, gpu_arguments=device, http=(http := f"127.0.0.1:{held.getsockname()[1]}"), log=log) as pair,
    ):
        judge = Judge(results, TARGETS)
        asyncio.run(_measure(judge, pair.target, http, requests=requests, rounds=rounds))
        judge.summarise()


async def _measure(judge: Judge, target: str, http: str, *, requests: int, rounds: int) -> None:
    async with AsyncClient(target) as client, _Http(http) as caller:
        ways: dict[str, Call] = {"grpc": lambda prompt, tokens: _by_grpc(client, prompt, tokens), "http": caller.call}
        prompts = map(_prompt, itertools.count())
        for call in ways.values():  # warm-up, not counted
            await _rate(call, prompts)
        firsts: dict[str, list[float]] = {way: [] for way in ways}
        for way in _turns(ways, requests):
            began = time.perf_counter()
            arrivals = await ways[way](next(prompts), _FIRST_TOKENS)
            firsts[way].append(arrivals[0] - began)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for way in _turns(ways, 2 * rounds):
            rates[way].append(await _rate(ways[way], prompts))
    for way in ways:
        judge.samples(f"gateway.first_token.{way}", milliseconds(firsts[way]), "ms")
    added = [above - below for above, below in zip(firsts["http"], firsts["grpc"], strict=True)]
    judge.median_of_samples("gateway.first_token.added", milliseconds(added), "ms")
    for way in ways:
        judge.samples(f"gateway.streams{_STREAMS}.{way}", rates[way], "tokens/s")
    lost = [1 - through / beside for through, beside in zip(_pairs(rates["http"]), _pairs(rates["grpc"]), strict=True)]
    judge.median_of_samples(f"gateway.streams{_STREAMS}.lost", lost, "ratio")


def _turns(ways: Iterable[str], number: int) -> Iterator[str]:
    """Each way a number of times: A B B A A B B A ..."""
    names = list(ways)
    for _ in range(number):
        yield from names
        names.reverse()


def _pairs(rates: list[float]) -> list[float]:
    """The mean of two runs at a time."""
    return [(first + second) / 2 for first, second in zip(rates[::2], rates[1::2], strict=True)]


def _prompt(number: int) -> list[int]:
    """Token ids. No two begin the same, so that nothing of an earlier one is reused."""
    return [10 + (number * 37 + position * 11) % 3000 for position in range(_PROMPT_TOKENS)]


async def _rate(call: Call, prompts: Iterator[list[int]]) -> float:
    """Pieces of text per second of all streams together, while all of them decode."""
    streams = await asyncio.gather(*(call(next(prompts), _STREAM_TOKENS) for _ in range(_STREAMS)))
    start, end = max(arrivals[0] for arrivals in streams), min(arrivals[-1] for arrivals in streams)
    return sum(start < arrival <= end for arrivals in streams for arrival in arrivals) / (end - start)


async def _by_grpc(client: AsyncClient, prompt: list[int], tokens: int) -> list[float]:
    arrivals: list[float] = []
    async with client.generate(prompt, max_tokens=tokens, temperature=0, ignore_eos=True) as generation:
        while (response := await generation.read()) is not None:
            if response.HasField("chunk") and response.chunk.text:
                arrivals.append(time.perf_counter())
    return arrivals


class _Http:
    """Calls the gateway over connections that it keeps."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def call(self, prompt: list[int], tokens: int) -> list[float]:
        """Generates; see Call."""
        connection = self._idle.pop() if self._idle else await self._connected()
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._address}\r\ncontent-type: application/json\r\n"
        arrivals = await connection.arrivals(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        if not arrivals:
            raise RuntimeError("the answer has no text")
        self._idle.append(connection)
        return arrivals

    async def _connected(self) -> "_Connection":
        host, _, port = self._address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, int(port))
        return connection


class _Connection(asyncio.Protocol):
    """Notes when each event of a stream arrives. Streams of asyncio would cost several times as much."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._arrivals: list[float] = []
        self._ended: asyncio.Future[None]
        self._received = b""

    async def arrivals(self, request: bytes) -> list[float]:
        """Sends a request, and returns when the pieces of text of its answer arrived."""
        self._arrivals, self._ended = [], asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._ended
        return self._arrivals

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    @override
    def data_received(self, data: bytes) -> None:
        received = self._received + data
        if received.startswith(b"HTTP/1.1 ") and not received.startswith(b"HTTP/1.1 200 "):
            status = received.partition(b"\r")[0].decode()
            self._ended.set_exception(RuntimeError(f"the gateway answered {status}"))
            self.transport.abort()
            return
        events, end, self._received = received.rpartition(_END_OF_EVENT)
        if end:
            self._arrivals += [time.perf_counter()] * events.count(_PIECE)
        if self._received == _LAST_CHUNK:
            self._received = b""
            self._ended.set_result(None)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_ended") and not self._ended.done():
            self._ended.set_exception(exc or RuntimeError("the gateway closed the connection"))


if __name__ == "__main__":
    run(main, __doc__)
