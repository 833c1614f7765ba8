"""A GPU service without a model. It answers by a script and records the requests."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from typing_extensions import override

from client._requests.generate import num_generations
from fiddler import rpc
from fiddler.v1 import generation_pb2, generation_pb2_grpc, tensor_pb2

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
PIECES = ("Once", " upon", "", " a time é🙂")
"""The texts of the chunks that the default script sends."""

_MOST_GENERATIONS = 64

Responses = Iterator[generation_pb2.GenerateResponse]
Script = Callable[[generation_pb2.GenerateRequest, grpc.ServicerContext], Responses]
"""How the server answers a request."""


def chunk(text: str, *token_ids: int) -> generation_pb2.GenerateResponse:
    """A chunk of generation 0."""
    return generation_pb2.GenerateResponse(chunk=generation_pb2.Chunk(token_ids=token_ids, text=text))


def complete(completion_tokens: int = len(PIECES)) -> generation_pb2.GenerateResponse:
    """The end of generation 0, after a prompt of 3 tokens, by its length."""
    return generation_pb2.GenerateResponse(
        complete=generation_pb2.Complete(
            finish_reason=generation_pb2.FINISH_REASON_LENGTH,
            usage=generation_pb2.Usage(prompt_tokens=3, completion_tokens=completion_tokens),
            timings=generation_pb2.Timings(queue_seconds=0.25, prefill_seconds=0.5, decode_seconds=1.5),
        )
    )


def tell_a_story(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
    """The default script: for each sequence a chunk for each of PIECES, then a complete."""
    if (number := num_generations(request)) > _MOST_GENERATIONS:
        rpc.invalid_argument("n", f"at most {_MOST_GENERATIONS}, got {number}").abort(context)
    for index in range(number):
        for token_id, text in enumerate(PIECES):
            response = chunk(text, token_id)
            response.chunk.index = index
            yield response
        response = complete()
        response.complete.index = index
        yield response


def hang_after(*responses: generation_pb2.GenerateResponse) -> Script:
    """Sends these responses, then nothing until the call ends."""

    def script(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        over = threading.Event()
        context.add_callback(over.set)
        yield from responses
        over.wait(20)

    return script


def fail_with(status: rpc.StatusError, *responses: generation_pb2.GenerateResponse) -> Script:
    """Sends these responses, then fails with a status."""

    def script(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        yield from responses
        status.abort(context)

    return script


def in_turn(*scripts: Script) -> Script:
    """Uses each script for one call, in order, and the last one for all further calls."""
    left = list(scripts)

    def script(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        return (left.pop(0) if len(left) > 1 else left[0])(request, context)

    return script


def taken(script: Script, request_id: str = "theirs") -> Script:
    """Sends the request's name at once, as a server does when it accepts a request, and goes on with a script."""

    def with_metadata(request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        context.send_initial_metadata((("fiddler-request-id", request_id),))
        yield from script(request, context)

    return with_metadata


class FakeGenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Answers requests by a script and records them.

    Attributes:
        script: How further requests are answered.
        requests: The requests received, in order.
        deadlines: The seconds until the deadline of each request; centuries if it has none.
        metadata: The metadata of each request.
        has_chat_template: Whether the model has a chat template.
        cancelled: Set when a caller ends a call before the server does.
    """

    def __init__(self) -> None:
        self.script: Script = tell_a_story
        self.requests: list[generation_pb2.GenerateRequest] = []
        self.deadlines: list[float] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.has_chat_template = True
        self.cancelled = threading.Event()

    @override
    def Generate(self, request: generation_pb2.GenerateRequest, context: grpc.ServicerContext) -> Responses:
        self.requests.append(request)
        self.deadlines.append(context.time_remaining() or 0.0)
        self.metadata.append(dict(context.invocation_metadata()))
        done = False
        context.add_callback(lambda: None if done else self.cancelled.set())
        yield from self.script(request, context)
        done = context.is_active()

    @override
    def Abort(
        self, request: generation_pb2.AbortRequest, context: grpc.ServicerContext
    ) -> generation_pb2.AbortResponse:
        ids = [each for each in [request.request_id, *request.request_ids] if each == "mine"]
        return generation_pb2.AbortResponse(aborted=bool(ids), aborted_ids=ids)

    @override
    def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> generation_pb2.TokenizeResponse:
        texts = [request.text] if request.HasField("text") else [message.content for message in request.chat.messages]
        words = " ".join([*texts, request.chat.template]).split()
        if request.add_special_tokens or not request.HasField("add_special_tokens"):
            words = ["<s>", *words]
        return generation_pb2.TokenizeResponse(token_ids=range(len(words)), tokens=words)

    @override
    def Detokenize(
        self, request: generation_pb2.DetokenizeRequest, context: grpc.ServicerContext
    ) -> generation_pb2.DetokenizeResponse:
        skips = request.skip_special_tokens or not request.HasField("skip_special_tokens")
        return generation_pb2.DetokenizeResponse(text=f"{list(request.token_ids)} {skips}")

    @override
    def GetModelInfo(
        self, request: generation_pb2.GetModelInfoRequest, context: grpc.ServicerContext
    ) -> generation_pb2.GetModelInfoResponse:
        return generation_pb2.GetModelInfoResponse(
            name="demo",
            model_type="mixtral",
            dtype=tensor_pb2.DTYPE_BFLOAT16,
            vocab_size=512,
            eos_token_ids=[2, 7],
            num_experts=8,
            expert_bytes=2**40,
            has_chat_template=self.has_chat_template,
            chat_templates=["default", "rag"],
        )

    @override
    def GetServerInfo(
        self, request: generation_pb2.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> generation_pb2.GetServerInfoResponse:
        return generation_pb2.GetServerInfoResponse(
            version="0.1.0",
            device="cpu",
            max_slots=4,
            uptime_seconds=1.5,
            limits=generation_pb2.RequestLimits(max_n=3, max_message_bytes=2**33),
        )


@dataclass
class FakeServer:
    """A running server.

    Attributes:
        target: The address.
        service: The generation service.
        health: The health service.
    """

    target: str
    service: FakeGenerationService = field(default_factory=FakeGenerationService)
    health: grpc_health.HealthServicer = field(default_factory=grpc_health.HealthServicer)


@contextmanager
def serving(listen: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeServer]:
    """Serves generations, health and reflection at an address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    fake = FakeServer(listen)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(fake.service, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    fake.health.set("", health_pb2.HealthCheckResponse.SERVING)
    fake.health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((SERVICE, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    if not listen.startswith("unix:"):
        fake.target = f"{listen.rpartition(':')[0]}:{port}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(grace=None).wait()
