"""`python -m benchmarks.gateway`: what the HTTP gateway costs beside gRPC, on models/demo.

gateway.first_token.grpc     ms from sending a short request until its first token, through gRPC
gateway.first_token.http     ms of the same through the gateway, which calls through gRPC itself
gateway.first_token.added    their difference, request by request
gateway.streamsN.grpc        tokens per second of N streams together, from the last one's first token to the first end
gateway.streamsN.http        the same through the gateway
gateway.streamsN.lost        the share of the tokens per second that the gateway loses, round by round

Requests alternate, so that other load on the machine affects both alike. The callers are in this process; that of HTTP
reads sockets and counts events, and does not parse them. Both count pieces of text, nearly one for each token. Both
keep their connections from one request to the next, as clients of either kind do.
Services, gateway and callers share the machine's cores, as they do where all run on one host.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Self

import typer

from benchmarks.harness.results import Append, Out, Quick, report
from benchmarks.harness.rounds import milliseconds
from benchmarks.harness.targets import Judge, Target
from client import AsyncClient, GenerationChunk
from fiddler.transport.ports import reserve
from pair import Pair
from tests.support.pairs import DEMO
from tools.command_line import run

_STREAMS = 16
_PROMPT_TOKENS = 12
_STREAM_TOKENS = 120
_TEXT = b'"text":"'
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
    requests: Annotated[int, typer.Option(help="Requests for the first token, each way.")] = 150,
    rounds: Annotated[int, typer.Option(help="Rounds of concurrent streams, each way.")] = 8,
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
        for call in ways.values():  # warm-up, not counted
            await _rate(call, 0)
        firsts: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(requests):
            for way in ways if number % 2 else reversed(ways):
                began = time.perf_counter()
                arrivals = await ways[way](_prompt(number), 1)
                firsts[way].append(arrivals[0] - began)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in ways if number % 2 else reversed(ways):
                rates[way].append(await _rate(ways[way], number))
    for way in ways:
        judge.samples(f"gateway.first_token.{way}", milliseconds(firsts[way]), "ms")
    added = [above - below for above, below in zip(firsts["http"], firsts["grpc"], strict=True)]
    judge.samples("gateway.first_token.added", milliseconds(added), "ms")
    for way in ways:
        judge.samples(f"gateway.streams{_STREAMS}.{way}", rates[way], "tokens/s")
    lost = [1 - through / beside for through, beside in zip(rates["http"], rates["grpc"], strict=True)]
    judge.samples(f"gateway.streams{_STREAMS}.lost", lost, "ratio")


def _prompt(number: int) -> list[int]:
    """Token ids. No two begin the same, so that nothing of an earlier one is reused."""
    return [10 + (number * 37 + position * 11) % 3000 for position in range(_PROMPT_TOKENS)]


async def _rate(call: Call, number: int) -> float:
    """Pieces of text per second of all streams together, while all of them decode."""
    streams = await asyncio.gather(
        *(call(_prompt(number * _STREAMS + each), _STREAM_TOKENS) for each in range(_STREAMS))
    )
    start, end = max(arrivals[0] for arrivals in streams), min(arrivals[-1] for arrivals in streams)
    return sum(start < arrival <= end for arrivals in streams for arrival in arrivals) / (end - start)


async def _by_grpc(client: AsyncClient, prompt: list[int], tokens: int) -> list[float]:
    arrivals: list[float] = []
    async with client.generate(prompt, max_tokens=tokens, temperature=0, ignore_eos=True) as generation:
        async for event in generation:
            if isinstance(event, GenerationChunk) and event.text:
                arrivals.append(time.perf_counter())
    return arrivals


class _Http:
    """Calls the gateway over connections that it keeps."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self._idle:
            writer.close()

    async def call(self, prompt: list[int], tokens: int) -> list[float]:
        """Generates; see Call."""
        host, _, port = self._address.rpartition(":")
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(host, int(port))
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._address}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        arrivals: list[float] = []
        while line := await reader.readline():
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise RuntimeError(f"the gateway answered {line.decode().strip()}")
            if b"[DONE]" in line:
                break
            if _TEXT in line and b'"finish_reason":null' in line:
                arrivals.append(time.perf_counter())
        if not arrivals:
            raise RuntimeError("the answer has no text")
        await reader.readuntil(_LAST_CHUNK)
        self._idle.append((reader, writer))
        return arrivals


if __name__ == "__main__":
    run(main, __doc__)
