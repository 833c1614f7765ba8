"""`python -m benchmarks.images`: how large the images are, and how soon a stack is healthy. Needs a Docker engine.

images.SERVICE.added        bytes of the image's own layers, without those of its base, python:3.11-slim-bookworm
images.shared               bytes of the own layers that both images share and the disk stores once
images.SERVICE.wheel        bytes of the layer with the project itself: all that a change of its code replaces
images.start.cpu            seconds from `docker compose up` until the CPU expert service is healthy
images.start.gpu            seconds from `docker compose up` until the GPU service, which waits for it, is healthy too
images.start.ready          seconds until the GPU service serves according to its log; the next health check finds it
images.restart              seconds from a kill of the CPU expert service until the restart policy has restored the pair
images.memory.SERVICE       bytes that the container's processes hold then, without the page cache

The model is models/demo, on the CPU. The images are built first, unless --no-build is given. Sizes are relative to the
base image on this machine, so they do not depend on its version.
"""

import json
import os
import signal
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from benchmarks.harness.results import Append, Out, Report, report
from client.health import ask_health
from fiddler.v1 import experts_pb2
from tests.compose import stack as docker
from tests.compose.stack import OWN_IMAGES, SERVICES, Stack, image, wait
from tools.command_line import run

_BASE = "python:3.11-slim-bookworm"
_EXPERTS = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_POLL_SECONDS = 0.1


def main(
    out: Out = None,
    append: Append = False,
    runs: Annotated[int, typer.Option(help="How often the stack is started.")] = 3,
    no_build: Annotated[bool, typer.Option("--no-build", help="Use the images that are there.")] = False,
) -> None:
    """Runs the benchmark."""
    with report(out, append) as results:
        stack = Stack("fiddler-benchmark")
        if not no_build:
            stack.compose("build", *SERVICES)
        _report_sizes(results)
        starts = [_start(stack) for _ in range(runs)]
        for name in starts[0]:
            unit = "bytes" if name.startswith("memory") else "s"
            results.samples(f"images.{name}", [start[name] for start in starts], unit)


def _report_sizes(out: Report) -> None:
    own = {service: _own_layers(image(service)) for service in OWN_IMAGES}
    for service, layers in own.items():
        out.samples(f"images.{service}.added", [sum(size for _, size in layers)], "bytes")
        out.samples(f"images.{service}.wheel", [layers[-1][1]], "bytes")
    first, second = own.values()
    out.samples("images.shared", [sum(size for layer, size in first if (layer, size) in second)], "bytes")


def _own_layers(name: str) -> list[tuple[str, int]]:
    """Digest and bytes of each layer that an image adds to its base. None of them is empty."""
    digests, base = (_layers(each) for each in (name, _BASE))
    if digests[: len(base)] != base:
        raise SystemExit(f"benchmarks.images: {name} was built on another {_BASE}; run without --no-build")
    history = docker.run("docker", "history", "--human=false", "--format", "{{.Size}}", name)
    sizes = [int(size) for size in history.split() if int(size)]
    own = digests[len(base) :]
    return list(zip(own, reversed(sizes[: len(own)]), strict=True))


def _layers(name: str) -> list[str]:
    layers: list[str] = json.loads(docker.run("docker", "image", "inspect", name))[0]["RootFS"]["Layers"]
    return layers


def _start(stack: Stack) -> dict[str, float]:
    stack.down("--volumes")
    try:
        began = time.time()
        stack.up(*SERVICES)
        cpu = _healthy_at(stack, "cpu-expert-service")
        gpu = _healthy_at(stack, "gpu-service")
        serving = [line for line in stack.logs("gpu-service").splitlines() if '"event": "serving"' in line]
        ready = datetime.fromisoformat(json.loads(serving[0])["timestamp"]).timestamp()
        memory = {f"memory.{service}": _memory(stack, service) for service in OWN_IMAGES}
        start = {"start.cpu": cpu - began, "start.ready": ready - began, "start.gpu": gpu - began}
        return {**start, "restart": _restart(stack), **memory}
    finally:
        stack.down("--volumes")


def _healthy_at(stack: Stack, service: str) -> float:
    """The end of the first health check that succeeded, in seconds since the epoch."""
    stack.wait_until_healthy(service)
    checks: list[dict[str, Any]] = stack.inspect(service)["State"]["Health"]["Log"]
    ended = next(check["End"] for check in checks if check["ExitCode"] == 0)
    return datetime.fromisoformat(ended[:26].rstrip("Z") + "+00:00").timestamp()


def _restart(stack: Stack) -> float:
    began = time.monotonic()
    os.kill(stack.inspect("cpu-expert-service")["State"]["Pid"], signal.SIGKILL)
    wait("it is lost", lambda: ask_health(stack.target, _EXPERTS) == "NOT_SERVING", poll_seconds=_POLL_SECONDS)
    wait("the pair is whole", lambda: ask_health(stack.target, _EXPERTS) == "SERVING", poll_seconds=_POLL_SECONDS)
    return time.monotonic() - began


def _memory(stack: Stack, service: str) -> int:
    pid = stack.inspect(service)["State"]["Pid"]
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return 1024 * int(fields["RssAnon"].split()[0])


if __name__ == "__main__":
    run(main, __doc__)
