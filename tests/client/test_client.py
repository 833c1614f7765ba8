"""The synchronous client."""

import threading
import time
from pathlib import Path

import grpc
import pytest

from client import (
    BusyError,
    Client,
    ClientError,
    Complete,
    DeadlineError,
    FinishReason,
    GenerationCancelledError,
    GenerationChunk,
    InvalidRequestError,
    ServerError,
    UnavailableError,
)
from fiddler import rpc
from fiddler.v1 import generation_pb2
from tests.support.fake_server import (
    PIECES,
    FakeServer,
    Responses,
    chunk,
    complete,
    fail_with,
    hang_after,
    serving,
    tell_a_story,
)

TIMEOUT_SECONDS = 10.0


def test_a_generation_is_chunks_and_then_one_complete(server: FakeServer) -> None:
    with Client(server.target) as client, client.generate("a prompt") as generation:
        assert generation.complete is None
        events = list(generation)
    chunks = [GenerationChunk(index=0, token_ids=(token_id,), text=text) for token_id, text in enumerate(PIECES)]
    end = Complete(
        index=0,
        finish_reason=FinishReason.LENGTH,
        prompt_tokens=3,
        completion_tokens=4,
        queue_seconds=0.25,
        prefill_seconds=0.5,
        decode_seconds=1.5,
    )
    assert events == [*chunks, end]
    assert generation.complete == end
    assert not server.service.cancelled.wait(0.1)


def test_text_reads_to_the_end(server: FakeServer) -> None:
    with Client(server.target) as client:
        generation = client.generate("a prompt")
        assert generation.text() == "".join(PIECES)
        assert generation.complete is not None
        assert generation.complete.completion_tokens == 4


def test_chunks_arrive_while_the_server_still_works(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with Client(server.target) as client, client.generate("a prompt") as generation:
        assert next(generation) == GenerationChunk(index=0, token_ids=(1,), text="first")


def test_what_is_not_given_stays_unset(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate("a prompt").text()
    assert server.service.requests == [generation_pb2.GenerateRequest(text="a prompt")]
    assert server.service.deadlines[0] > 1e9


def test_every_argument_arrives(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate(
            [1, 2**32 - 1],
            max_tokens=5,
            temperature=0.0,
            top_k=0,
            top_p=0.5,
            seed=2**64 - 1,
            stop_token_ids=(7, 8),
            timeout=9,
        ).text()
    (request,) = server.service.requests
    assert request == generation_pb2.GenerateRequest(
        token_ids=generation_pb2.TokenIds(ids=[1, 2**32 - 1]),
        max_tokens=5,
        sampling=generation_pb2.SamplingParameters(temperature=0.0, top_k=0, top_p=0.5, seed=2**64 - 1),
        stop_token_ids=[7, 8],
    )
    (seconds,) = server.service.deadlines
    assert 5 < seconds < 9.5


def test_an_empty_list_is_a_prompt_of_ids(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate([]).text()
    assert server.service.requests[0].WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
def test_a_timeout_of_ages_is_none_that_has_passed(server: FakeServer, timeout: float) -> None:
    with Client(server.target) as client:
        assert client.generate("a prompt", timeout=timeout).text() == "".join(PIECES)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": [-1]}, "token_ids.ids"),
        ({"prompt": ["a"]}, "token_ids.ids"),
        ({"prompt": 5}, "token_ids.ids"),
        ({"prompt": None}, "token_ids.ids"),
        ({"prompt": b"ab"}, "prompt"),
        ({"prompt": "\ud800"}, "text"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": "hot"}, "sampling.temperature"),
        ({"top_k": -(2**31) - 1}, "sampling.top_k"),
        ({"top_p": [1]}, "sampling.top_p"),
        ({"seed": -1}, "sampling.seed"),
        ({"seed": 2**64}, "sampling.seed"),
        ({"stop_token_ids": [2**32]}, "stop_token_ids"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
    ],
)
def test_what_cannot_be_sent_is_named(server: FakeServer, arguments: dict[str, object], field: str) -> None:
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.generate(**{"prompt": "a prompt", **arguments})  # type: ignore[arg-type]
    assert raised.value.field == field
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.message.startswith(f"{field}: must be ")
    assert server.service.requests == []


def test_the_field_that_the_server_refuses_is_named(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.invalid_argument("sampling.top_p", "must be at most 1, got 7"))
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.generate("a prompt", top_p=7).text()
    assert raised.value.field == "sampling.top_p"
    assert raised.value.message == "sampling.top_p: must be at most 1, got 7"
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.reason == ""


def test_a_mistake_that_programs_should_know_has_a_name(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.invalid_argument("text", "is too long", "CONTEXT_LENGTH_EXCEEDED"))
    with Client(server.target) as client, pytest.raises(InvalidRequestError) as raised:
        client.generate("a prompt").text()
    assert (raised.value.field, raised.value.reason) == ("text", "CONTEXT_LENGTH_EXCEEDED")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BusyError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.CANCELLED, GenerationCancelledError),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNKNOWN, ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
    ],
)
def test_each_status_has_its_error(server: FakeServer, code: grpc.StatusCode, kind: type[ClientError]) -> None:
    server.service.script = fail_with(rpc.StatusError(code, "so it is"), chunk("first", 1))
    with Client(server.target) as client, client.generate("a prompt") as generation:
        assert next(generation) == GenerationChunk(0, (1,), "first")
        with pytest.raises(ClientError, match="so it is") as raised:
            next(generation)
        assert type(raised.value) is kind
        assert raised.value.code is code
        explained = "the server is no GPU service, or an older one: " if code is grpc.StatusCode.UNIMPLEMENTED else ""
        assert raised.value.message == f"{explained}so it is"
        with pytest.raises(kind):  # again
            next(generation)


@pytest.mark.parametrize("details", [b"\xff\xff no message", b"\x08\x05", b""])
def test_details_that_make_no_sense_are_ignored(server: FakeServer, details: bytes) -> None:
    def script(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong")
        yield chunk("never")

    server.service.script = script
    with Client(server.target) as client, pytest.raises(InvalidRequestError, match="wrong") as raised:
        client.generate("a prompt").text()
    assert raised.value.field is None


def test_a_stream_that_ends_too_early_is_no_success(server: FakeServer) -> None:
    server.service.script = lambda request, context: iter([chunk("first", 1)])
    with Client(server.target) as client, pytest.raises(ServerError, match="before the generation was complete"):
        client.generate("a prompt").text()


def test_events_of_a_newer_server_are_skipped(server: FakeServer) -> None:
    newer = complete()
    newer.complete.finish_reason = 99  # type: ignore[assignment]
    server.service.script = lambda request, context: iter([generation_pb2.GenerateResponse(), newer])
    with Client(server.target) as client:
        (event,) = client.generate("a prompt")
    assert isinstance(event, Complete)
    assert event.finish_reason is FinishReason.UNSPECIFIED


def test_finish_reasons_are_those_of_the_proto() -> None:
    ours = {f"FINISH_REASON_{reason.name}": reason.value for reason in FinishReason}
    assert ours == dict(generation_pb2.FinishReason.items())


def test_leaving_early_cancels_on_the_server(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with Client(server.target) as client:
        with client.generate("a prompt") as generation:
            next(generation)
        assert server.service.cancelled.wait(TIMEOUT_SECONDS)
        with pytest.raises(GenerationCancelledError):
            next(generation)


def test_closing_the_client_cancels_its_generations(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with Client(server.target) as client:
        generation = client.generate("a prompt")
        next(generation)
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)
    with pytest.raises(GenerationCancelledError):
        next(generation)


def test_cancel_from_another_thread_wakes_the_reader(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with Client(server.target) as client:
        generation = client.generate("a prompt")
        next(generation)
        threading.Timer(0.1, generation.cancel).start()
        with pytest.raises(GenerationCancelledError) as raised:
            next(generation)
        assert raised.value.code is grpc.StatusCode.CANCELLED
        assert server.service.cancelled.wait(TIMEOUT_SECONDS)


def test_the_timeout_ends_a_generation(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with Client(server.target) as client, pytest.raises(DeadlineError) as raised:
        client.generate("a prompt", timeout=0.3).text()
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)


def test_model_info(server: FakeServer) -> None:
    with Client(server.target) as client:
        info = client.model_info()
    assert (info.name, info.model_type, info.dtype) == ("demo", "mixtral", "bfloat16")
    assert (info.vocab_size, info.num_experts, info.expert_bytes) == (512, 8, 2**40)
    assert info.eos_token_ids == (2, 7)


def test_server_info(server: FakeServer) -> None:
    with Client(server.target) as client:
        info = client.server_info(timeout=TIMEOUT_SECONDS)
    assert (info.version, info.device, info.max_slots, info.uptime_seconds) == ("0.1.0", "cpu", 4, 1.5)


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    with serving(f"unix:{tmp_path}/s") as fake, Client(fake.target) as client:
        assert client.generate("a prompt").text() == "".join(PIECES)


def test_where_nobody_listens_calls_fail_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with Client(f"unix:{tmp_path}/nobody", retry_unavailable=False) as client:
        with pytest.raises(UnavailableError):
            client.generate("a prompt").text()
        with pytest.raises(UnavailableError) as raised:
            client.model_info()
        with pytest.raises(UnavailableError):
            client.server_info()
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < TIMEOUT_SECONDS


def test_a_client_told_to_wait_waits_for_the_server(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/late"
    with Client(target, wait_for_ready=True) as client:
        with pytest.raises(DeadlineError):
            client.generate("a prompt", timeout=0.2).text()
        generation = client.generate("a prompt", timeout=TIMEOUT_SECONDS)
        with serving(target):
            assert generation.text() == "".join(PIECES)


@pytest.mark.parametrize("target", ["nowhere", "host:", "host:99999", "unix:", 5])
def test_a_target_that_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        Client(target)
    assert raised.value.field == "target"


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError):
        Client(keepalive=1)  # type: ignore[call-arg]


def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = Client(server.target)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("a prompt")
    with pytest.raises(RuntimeError, match="closed"):
        client.model_info()


def test_a_prompt_over_the_clients_limit_is_not_sent(server: FakeServer) -> None:
    with Client(server.target, max_message_bytes=1000) as client, pytest.raises(InvalidRequestError) as raised:
        client.generate("a" * 1001)
    assert raised.value.field == "prompt"


def test_a_prompt_over_the_servers_limit_is_the_requests_fault(server: FakeServer) -> None:
    with Client(server.target) as client, pytest.raises(InvalidRequestError, match="larger than max"):
        client.generate("a" * (5 * 2**20)).text()


def test_messages_over_grpcs_own_limit_arrive(server: FakeServer) -> None:
    text = "a" * (5 * 2**20)
    server.service.script = lambda request, context: iter([chunk(text), complete()])
    with Client(server.target) as client:
        assert client.generate("a prompt").text() == text


def test_silence_is_pinged(server: FakeServer) -> None:
    server.service.script = hang_after()
    # A server with default settings refuses frequent pings, which shows that the client sends them.
    refused = pytest.raises(UnavailableError, match=r"(?i)too many pings")
    with Client(server.target, keepalive_seconds=0.5, retry_unavailable=False) as client, refused:
        client.generate("a prompt", timeout=TIMEOUT_SECONDS).text()


def test_threads_share_a_client(server: FakeServer) -> None:
    texts: list[str] = []
    with Client(server.target) as client:
        threads = [threading.Thread(target=lambda: texts.append(client.generate("a").text())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == ["".join(PIECES)] * 4


def test_responses_are_the_messages_of_the_proto(server: FakeServer) -> None:
    with Client(server.target) as client:
        generation = client.generate("a prompt")
        responses = list(generation.responses())
    request, context = generation_pb2.GenerateRequest(), None
    assert responses == list(tell_a_story(request, context))  # type: ignore[arg-type]
    assert generation.complete is not None
