"""The steps of a round trip in our own code, each timed alone, in one process, without gRPC."""

import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from benchmarks.hop.messages import NUM_ROWS, Message, NoKernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import tensors
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import assign
from fiddler.v1 import experts_pb2

_SECONDS_PER_STEP = 0.3
_WARM_UP = 20


def measure(directory: Path, message_name: str) -> dict[str, list[float]]:
    """Seconds of each step by name, in the order of a round trip. `answer` includes decode_request, assign and run.

    Args:
        directory: The checkpoint that messages.write_checkpoint wrote.
        message_name: A key of messages.NUM_ROWS.
    """
    message = Message.make(NUM_ROWS[message_name])
    rows, k = message.expert_ids.shape
    checkpoint = Checkpoint.open(directory)
    runner = Runner(checkpoint, NoKernel())
    servicer = ExpertServicer(
        checkpoint, runner, dtype=torch.bfloat16, settings=Settings(model=directory, metrics_port=0)
    )
    request = message.encode()
    request_bytes = request.SerializeToString()
    received = experts_pb2.RunRequest.FromString(request_bytes)
    context = mock.Mock()
    context.invocation_metadata.return_value = ()
    response = next(servicer.Run(iter((received,)), context))
    response_bytes = response.SerializeToString()
    hidden_shape = tuple(message.hidden.shape)

    def decode_request() -> None:
        tensors.decode(received.hidden, "hidden", dtype=torch.bfloat16, shape=(None, hidden_shape[1]))
        tensors.decode(received.expert_ids, "expert_ids", dtype=torch.int32, shape=(rows, None))
        tensors.decode(received.routing_weights, "routing_weights", dtype=torch.float32, shape=(rows, k))

    steps: dict[str, Callable[[], object]] = {
        "encode_request": message.encode,
        "serialize_request": request.SerializeToString,
        "parse_request": lambda: experts_pb2.RunRequest.FromString(request_bytes),
        "decode_request": decode_request,
        "assign": lambda: assign(message.expert_ids, message.routing_weights),
        "run": lambda: runner.run(
            0, message.hidden, expert_ids=message.expert_ids, routing_weights=message.routing_weights
        ),
        "answer": lambda: next(servicer.Run(iter((received,)), context)),
        "serialize_response": response.SerializeToString,
        "parse_response": lambda: experts_pb2.RunResponse.FromString(response_bytes),
        "decode_response": lambda: tensors.decode(response.output, "output", dtype=torch.bfloat16, shape=hidden_shape),
    }
    with torch.inference_mode():
        return {name: _time(step) for name, step in steps.items()}


def _time(step: Callable[[], object]) -> list[float]:
    for _ in range(_WARM_UP):
        step()
    samples = []
    end = time.perf_counter() + _SECONDS_PER_STEP
    while (started := time.perf_counter()) < end:
        step()
        samples.append(time.perf_counter() - started)
    return samples
