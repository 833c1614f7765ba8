"""What callers may hold of a service, as a process: silent calls, bytes that are no message, and a lost socket."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cpu_expert_service.calls.guard import NUM_HEALTH_SLOTS, NUM_OTHER_SLOTS
from fiddler.calls.watches import MOST_WATCHES
from fiddler.v1 import experts_pb2, experts_pb2_grpc
from tests.support import processes, statuses
from tests.support.in_process_service import wait_until
from tests.support.ports import free_port
from tests.support.processes import SERVING, Process
from tests.support.streams import stream

SERVICE = "fiddler.v1.ExpertService"
DESCRIBE, CHECK, WATCH = f"/{SERVICE}/Describe", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def running(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With reflection, so that its calls can be tried too."""
    with processes.start(tiny, f"unix:{tmp_path_factory.mktemp('run')}/experts.sock", "--reflection") as process:
        process.wait_until_serving()
        yield process


@contextmanager
def connected(process: Process) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(process.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@contextmanager
def silent(channel: grpc.Channel, path: str, count: int) -> Iterator[list[Any]]:
    """Calls that send no message until the end of the block."""
    held = True

    def nothing() -> Iterator[bytes]:
        while held:
            time.sleep(0.02)
        yield from ()

    call = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
    calls = [call(nothing()) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield calls
    finally:
        held = False
        for each in calls:
            each.cancel()


def code_of(call: Any) -> grpc.StatusCode | None:
    """How a call has ended; None if it goes on."""
    return None if call.is_active() else call.code()


@pytest.mark.parametrize(("path", "count"), [(REFLECT, 30), (DESCRIBE, 30), (CHECK, 30), (CHECK, 100), (WATCH, 100)])
def test_silent_calls_keep_no_other_call_from_its_answer(running: Process, path: str, count: int) -> None:
    with connected(running) as attacker, connected(running) as channel, silent(attacker, path, count):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for _ in range(3):
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == SERVING
        described = experts_pb2_grpc.ExpertServiceStub(channel).Describe(experts_pb2.DescribeRequest(), timeout=5)
        assert described.layers
        with stream(channel) as opened:
            assert opened.works()


@pytest.mark.parametrize(("path", "most"), [(DESCRIBE, NUM_OTHER_SLOTS), (CHECK, NUM_HEALTH_SLOTS)])
def test_calls_that_are_too_many_at_once_are_refused(running: Process, path: str, most: int) -> None:
    with connected(running) as channel, silent(channel, path, most + 5) as calls:
        wait_until(lambda: sum(code_of(call) is not None for call in calls) >= 5)
        ended = [code for call in calls if (code := code_of(call)) is not None]
        assert set(ended) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
        assert len(ended) == 5
        refused = next(call for call in calls if code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "are under way already" in refused.details()


def test_health_watches_are_bounded_and_given_back(running: Process) -> None:
    def watch(channel: grpc.Channel, number: int) -> Any:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return stub.Watch(health_pb2.HealthCheckRequest(service=f"name {number}" if number else SERVICE))

    with connected(running) as channel:
        watches = [watch(channel, number) for number in range(MOST_WATCHES)]
        assert [next(each).status for each in watches] == [SERVING] + [
            health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        ] * (MOST_WATCHES - 1)
        with pytest.raises(grpc.RpcError) as refused:
            next(watch(channel, 0))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert statuses.retry_seconds(refused.value) == 1.0
        for each in watches:
            each.cancel()
        wait_until(lambda: _starts(watch(channel, 0)))


def _starts(watch: Any) -> bool:
    try:
        return bool(next(watch).status == SERVING)
    except grpc.RpcError:
        return False
    finally:
        watch.cancel()


@pytest.mark.parametrize("path", [DESCRIBE, CHECK, WATCH, REFLECT, f"/{SERVICE}/Run"])
def test_bytes_that_are_no_message_are_an_invalid_argument(running: Process, path: str) -> None:
    random.seed(5)
    messages = [b"\xff", b"\x0a\x7f", *(random.randbytes(random.randrange(1, 40)) for _ in range(30))]
    with connected(running) as channel:
        call = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
        codes = []
        for message in messages:
            answers = call(iter([message]), timeout=30)
            try:
                next(answers, None)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
            answers.cancel()
        assert codes[0] is codes[1] is grpc.StatusCode.INVALID_ARGUMENT
        # random bytes may be a message of unknown fields
        known = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
        assert set(codes) <= known | {grpc.StatusCode.NOT_FOUND}
        assert processes.health(channel) == SERVING


def test_a_call_without_a_message_is_an_invalid_argument(running: Process) -> None:
    with connected(running) as channel:
        call = channel.stream_unary(DESCRIBE, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as refused:
            call(iter([]), timeout=30)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _reflect(channel: grpc.Channel, **question: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=30)
    return answer


def test_reflection_describes_the_contract(running: Process) -> None:
    with connected(running) as channel:
        listed = _reflect(channel, list_services="").list_services_response.service
        assert {service.name for service in listed} == {SERVICE, "grpc.health.v1.Health", REFLECT.split("/")[1]}
        answer = _reflect(channel, file_containing_symbol=SERVICE)
        assert experts_pb2.DESCRIPTOR.serialized_pb in answer.file_descriptor_response.file_descriptor_proto


def _remove(path: Path) -> None:
    path.unlink()


def _remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def _replace(path: Path) -> None:
    path.unlink()
    path.write_text("a file in the way")
    time.sleep(3)
    path.unlink()


@pytest.mark.parametrize("lose", [_remove, _remove_directory, _replace])
def test_a_socket_that_is_lost_is_bound_again_and_its_streams_go_on(
    running: Process, lose: Callable[[Path], None]
) -> None:
    path = Path(running.address.removeprefix("unix:"))
    with connected(running) as channel, stream(channel) as opened:
        assert opened.works()
        lose(path)
        wait_until(path.is_socket)
        running.wait_until_serving()
        assert opened.works(), "the stream was ended"
        opened.finish()
    with connected(running) as channel, stream(channel) as opened:
        assert opened.works()


def test_on_a_network_the_service_warns_and_does_not_describe_itself(tiny: Path) -> None:
    with processes.start(tiny, f"0.0.0.0:{free_port()}", "--no-prefault") as process:
        process.wait_until_serving()
        with connected(process) as channel, pytest.raises(grpc.RpcError) as refused:
            _reflect(channel, list_services="")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        process.signal(15)
        errors = process.outcome().errors
    (warning,) = [line for line in errors.splitlines() if '"level": "warning"' in line]
    assert "anyone who reaches the address may call" in warning
    assert "Traceback" not in errors
