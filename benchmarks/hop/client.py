"""The client's process, started by children.py. It measures on request.

Each line of standard input is a JSON list, [message, count]. Each is answered on standard output with
[[submit, round trip], ...] in seconds.
"""

import os
import sys
from pathlib import Path

from benchmarks.hop.variants import Variant

_variant = Variant.from_json(sys.argv[1])
if _variant.cores:
    os.sched_setaffinity(0, {_variant.cores[0]})
if _variant.prepared:
    from fiddler import process

    process.prepare()

# ruff: noqa: E402 - grpc is imported after the process is prepared
import asyncio
import json
import time

import grpc
import torch

from benchmarks.hop.messages import NUM_ROWS, Message
from benchmarks.hop.transports import Transport, connect

_WARM_UP = 3


def _measure(transport: Transport, message: Message, count: int) -> list[tuple[float, float]]:
    """Seconds of `submit` alone and of the round trip, `count` times after a warm-up."""
    clock = time.perf_counter
    samples = []
    for _ in range(_WARM_UP + count):
        started = clock()
        transport.submit(message)
        submitted = clock()
        transport.join()
        joined = clock()
        samples.append((submitted - started, joined - started))
    return samples[_WARM_UP:]


def _answer_requests(directory: Path) -> None:
    """Measures until standard input ends."""
    messages = {name: Message.make(num_rows) for name, num_rows in NUM_ROWS.items()}
    with torch.inference_mode():
        transport = connect(_variant, directory)
        print("ready", flush=True)
        for line in sys.stdin:
            name, count = json.loads(line)
            print(json.dumps(_measure(transport, messages[name], count)), flush=True)


async def _alongside_a_server(directory: Path) -> None:
    """As in the GPU service: the main thread runs an event loop with a server, another thread is the client."""
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{directory / 'generation.sock'}")
    await server.start()
    await asyncio.to_thread(_answer_requests, directory)


def main() -> None:
    """Runs until standard input ends."""
    directory = Path(sys.argv[2])
    if _variant.in_service:
        asyncio.run(_alongside_a_server(directory))
    else:
        _answer_requests(directory)


if __name__ == "__main__":
    main()
