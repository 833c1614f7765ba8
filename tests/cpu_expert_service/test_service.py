"""What the service describes, computes and counts, and which callers it admits."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from structlog.testing import capture_logs

from fiddler import PROTOCOL_VERSION, __version__, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.v1 import experts_pb2, tensor_pb2
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.errors import HandshakeError
from tests.support import processes, statuses
from tests.support.in_process_service import (
    MAX_EXPERTS_PER_ROW,
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    MAX_STREAMS,
    Service,
    value,
    wait_until,
)
from tests.support.streams import HIDDEN_SIZE, Stream, ask, stream


def test_describe_tells_what_is_served(service: Service, checkpoint: Checkpoint) -> None:
    description = service.stub.Describe(experts_pb2.DescribeRequest())
    assert description == experts_pb2.DescribeResponse(
        protocol_version=PROTOCOL_VERSION,
        checkpoint_fingerprint=checkpoint.fingerprint,
        model_type="deepseek_v2",
        layers=[
            experts_pb2.MoeLayer(
                name=f"model.layers.{number}.mlp.experts",
                decoder_layer=number,
                num_experts=8,
                hidden_size=HIDDEN_SIZE,
                intermediate_size=32,
                activation="silu",
            )
            for number in (1, 2)
        ],
        dtype=tensor_pb2.DTYPE_FLOAT32,
        weight_dtype=tensor_pb2.DTYPE_FLOAT32,
        limits=experts_pb2.Limits(
            max_rows=MAX_ROWS,
            max_experts_per_row=MAX_EXPERTS_PER_ROW,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_streams=MAX_STREAMS,
        ),
        kernel="pytorch",
        threads=service.kernel.num_threads,
        version=__version__,
        weight_format="float32",
    )


def test_a_caller_that_fits_is_welcome(service: Service, checkpoint: Checkpoint) -> None:
    request = experts_pb2.DescribeRequest(
        protocol_version=PROTOCOL_VERSION,
        checkpoint_fingerprint=checkpoint.fingerprint,
        dtype=tensor_pb2.DTYPE_FLOAT32,
    )
    assert service.stub.Describe(request).model_type == "deepseek_v2"


@pytest.mark.parametrize(
    ("subject", "expected", "reason"),
    [
        ("protocol_version", 99, "the caller expects 99, and the CPU expert service has 1"),
        ("protocol_version", 0, "the caller expects 0, and the CPU expert service has 1"),
        ("checkpoint_fingerprint", "0" * 64, "the caller expects 0000"),
        ("weight_format", "int4 group 32", "expects int4 group 32, and the CPU expert service has float32"),
        ("checkpoint_fingerprint", "", "the caller expects , and"),
        ("dtype", tensor_pb2.DTYPE_BFLOAT16, "expects DTYPE_BFLOAT16, and the CPU expert service has DTYPE_FLOAT32"),
        ("dtype", 77, "the caller expects 77, and the CPU expert service has DTYPE_FLOAT32"),
    ],
)
def test_a_caller_that_does_not_fit_is_told_why(service: Service, subject: str, expected: Any, reason: str) -> None:
    with capture_logs() as logs, pytest.raises(grpc.RpcError) as caught:
        service.stub.Describe(experts_pb2.DescribeRequest(**{subject: expected}))
    named, description = statuses.mismatch(caught.value)
    assert named == subject
    assert reason in description
    assert description.startswith(f"{subject}: ")
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("handshake refused", description)]


def test_of_another_checkpoint_in_another_format_the_formats_are_named(service: Service) -> None:
    request = experts_pb2.DescribeRequest(checkpoint_fingerprint="0" * 64, weight_format="fp8 128x128")
    with pytest.raises(grpc.RpcError) as caught:
        service.stub.Describe(request)
    assert statuses.mismatch(caught.value)[0] == "weight_format"


def test_the_client_of_the_gpu_service_reports_both_formats(tiny: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    told = "weight_format: the caller expects fp8 128x128, and the CPU expert service has float32"
    with processes.start(tiny, f"unix:{tmp_path}/experts.sock") as process:
        process.wait_until_serving()
        client = ExpertClient(
            process.address,
            torch.float32,
            timeout_seconds=20,
            max_message_bytes=MAX_MESSAGE_BYTES,
            weight_format="fp8 128x128",
        )
        with closing(client), pytest.raises(HandshakeError, match=told):
            client.connect(checkpoint.fingerprint)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 3), (MAX_ROWS, MAX_EXPERTS_PER_ROW)])
def test_the_answer_is_the_runner_s(service: Service, layer: int, rows: int, k: int) -> None:
    request = ask(layer=layer, rows=rows, k=k, seed=rows)
    expected = service.runner.run(
        layer,
        tensors.decode(request.hidden, "", dtype=torch.float32, shape=(rows, HIDDEN_SIZE)),
        expert_ids=tensors.decode(request.expert_ids, "", dtype=torch.int32, shape=(rows, k)),
        routing_weights=tensors.decode(request.routing_weights, "", dtype=torch.float32, shape=(rows, k)),
    )
    with stream(service.channel) as opened:
        opened.send(request)
        response = opened.receive()
        opened.finish()
    output = tensors.decode(response.output, "", dtype=torch.float32, shape=(rows, HIDDEN_SIZE))
    assert torch.equal(output, expected.output)
    assert response.queue_seconds >= 0
    assert response.compute_seconds > 0


def test_answers_come_in_order_with_the_caller_s_numbers(service: Service) -> None:
    sequences = [3, 1, 2**64 - 1, 0, 3]
    with stream(service.channel) as opened:
        for sequence in sequences:
            opened.send(ask(sequence, rows=1 + sequence % 3, seed=sequence % 7))
        assert [opened.receive().sequence for _ in sequences] == sequences
        opened.finish()


def test_streams_side_by_side_get_their_own_answers(service: Service) -> None:
    def converse(seed: int) -> list[bytes]:
        with stream(service.channel) as opened:
            outputs = []
            for sequence in range(10):
                opened.send(ask(sequence, seed=seed))
                outputs.append(opened.receive().output.data)
            opened.finish()
        return outputs

    with ThreadPoolExecutor(MAX_STREAMS) as threads:
        together = list(threads.map(converse, range(MAX_STREAMS)))
    assert together == [converse(seed) for seed in range(MAX_STREAMS)]
    assert len({outputs[0] for outputs in together}) == MAX_STREAMS


def _lets_in(service: Service) -> bool:
    with stream(service.channel) as opened:
        try:
            return opened.works()
        except grpc.RpcError:
            return False


@pytest.mark.parametrize("leave", [Stream.finish, Stream.close, lambda stream: stream.fails(ask(layer=9))])
def test_streams_are_counted_out_and_in(service: Service, leave: Callable[[Stream], Any]) -> None:
    streams = [Stream(service.channel) for _ in range(MAX_STREAMS)]
    try:
        assert all(opened.works() for opened in streams)
        error = Stream(service.channel).fails()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "3 streams are open already"
        # handshakes have spare threads
        assert service.stub.Describe(experts_pb2.DescribeRequest()).limits.max_streams == MAX_STREAMS
        assert all(opened.works() for opened in streams)
        leave(streams.pop())
        wait_until(lambda: _lets_in(service))
    finally:
        for opened in streams:
            opened.close()


def test_the_streams_of_a_client_that_vanished_are_free_again(service: Service) -> None:
    # a channel with its own pool: closing another one would leave the connection open for the others
    with grpc.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert all(Stream(channel).works() for _ in range(MAX_STREAMS))
    wait_until(lambda: _lets_in(service))


def test_a_client_that_leaves_between_messages_is_no_failure(service: Service) -> None:
    with capture_logs() as logs:
        with stream(service.channel) as leaver:
            assert leaver.works()
        wait_until(lambda: value("fiddler_expert_streams") == 0)
    assert logs == []


def test_a_client_that_leaves_during_a_computation_disturbs_nobody(service: Service) -> None:
    service.kernel.gate = threading.Event()
    with capture_logs() as logs, stream(service.channel) as bystander:
        with stream(service.channel) as leaver:
            leaver.send(ask())
            wait_until(lambda: value("fiddler_expert_streams") >= 1)
            time.sleep(0.05)
        service.kernel.gate.set()
        assert bystander.works()
        wait_until(lambda: value("fiddler_expert_streams") == 1)
    assert logs == []


def test_what_was_done_is_counted(service: Service) -> None:
    names = {
        "fiddler_expert_rows_total": 5.0,
        "fiddler_expert_call_rows_count": 2.0,
        "fiddler_expert_call_rows_sum": 5.0,
        "fiddler_expert_queue_seconds_count": 2.0,
        "fiddler_expert_compute_seconds_count": 2.0,
    }
    before = {name: value(name) for name in names}
    before_codes = {code: value("fiddler_expert_requests_total", code=code) for code in ("OK", "INVALID_ARGUMENT")}
    before_bytes = value("fiddler_expert_received_bytes_total"), value("fiddler_expert_sent_bytes_total")
    requests = [ask(rows=2), ask(rows=3)]
    with stream(service.channel) as opened:
        replies = []
        for request in requests:
            opened.send(request)
            replies.append(opened.receive())
        assert value("fiddler_expert_streams") == 1
        opened.fails(ask(layer=2))
    assert {name: value(name) - before[name] for name in names} == names
    assert {
        code: value("fiddler_expert_requests_total", code=code) - count for code, count in before_codes.items()
    } == {
        "OK": 2,
        "INVALID_ARGUMENT": 1,
    }
    after_bytes = value("fiddler_expert_received_bytes_total"), value("fiddler_expert_sent_bytes_total")
    assert after_bytes[0] - before_bytes[0] == sum(request.ByteSize() for request in requests)
    assert after_bytes[1] - before_bytes[1] == sum(reply.ByteSize() for reply in replies)


@pytest.mark.parametrize(
    ("ids", "num_read"),
    [
        ([[0, 5]], 2),
        ([[3, -1]], 1),  # the other one is computed elsewhere
        ([[3, 1], [3, 2], [3, 4], [3, 5]], 5),
        ([[3, 1], [3, 2], [3, 4], [3, 5], [3, 6]], 0),  # five rows of one expert: computing takes longer than reading
        ([[-1, -1]], 0),
    ],
)
def test_weights_read_are_those_of_experts_with_few_rows(service: Service, ids: list[list[int]], num_read: int) -> None:
    request = ask(rows=len(ids))
    tensors.encode(torch.tensor(ids, dtype=torch.int32), experts := tensor_pb2.Tensor())
    request.expert_ids.CopyFrom(experts)
    names = ("fiddler_expert_weight_read_bytes_total", "fiddler_expert_weight_read_seconds_total")
    before = [value(name) for name in names]
    with stream(service.channel) as one:
        one.send(request)
        one.receive()
        one.finish()
    num_bytes, seconds = (value(name) - then for name, then in zip(names, before, strict=True))
    assert num_bytes == num_read * service.runner.expert_bytes[0]
    assert (seconds > 0) == (num_read > 0)
