"""Generate as the protocol has it, without the client's own words: what was sent, put together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from fiddler.v1 import generation_pb2, generation_pb2_grpc
from fiddler.v1.generation_pb2 import Complete, GenerateRequest, TokenIds, TokenLogprobs

Stub = generation_pb2_grpc.GenerationServiceStub


@dataclass
class Answer:
    """One generation."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    complete: Complete = field(default_factory=Complete)
    pieces: list[str] = field(default_factory=list)
    """The text of each chunk."""


@dataclass
class Call:
    """All of a request's generations, by index."""

    answers: dict[int, Answer] = field(default_factory=dict)
    prompt: list[TokenLogprobs] = field(default_factory=list)
    request_id: str = ""

    def answer(self, index: int) -> Answer:
        """That generation's, which may have just begun."""
        return self.answers.setdefault(index, Answer())


@contextmanager
def connect(target: str) -> Iterator[Stub]:
    """A stub on a channel of its own that takes messages of any size."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        yield Stub(channel)


def request(prompt: str | list[int], **fields: Any) -> GenerateRequest:
    """A request for a text or for token ids."""
    if isinstance(prompt, str):
        return GenerateRequest(text=prompt, **fields)
    return GenerateRequest(token_ids=TokenIds(ids=prompt), **fields)


def generate(stub: Stub, prompt: str | list[int], **fields: Any) -> Call:
    """Reads a call to its end, and makes sure that messages come in the order that they should."""
    call, stream = Call(), stub.Generate(request(prompt, **fields))
    ended = set()
    for message in stream:
        kind = message.WhichOneof("event")
        if kind == "chunk":
            assert message.chunk.index not in ended
            answer = call.answer(message.chunk.index)
            answer.token_ids += message.chunk.token_ids
            answer.text += message.chunk.text
            answer.pieces.append(message.chunk.text)
            answer.logprobs += message.chunk.logprobs
        elif kind == "complete":
            ended.add(message.complete.index)
            call.answer(message.complete.index).complete = message.complete
        elif kind == "prompt":
            assert not call.answers, "the prompt comes first"
            call.prompt += message.prompt.tokens
    assert ended == set(call.answers)
    call.request_id = str(dict(stream.initial_metadata())["fiddler-request-id"])
    return call


def generate_one(stub: Stub, prompt: str | list[int], **fields: Any) -> Answer:
    """As `generate`, where there is one generation."""
    (answer,) = generate(stub, prompt, **fields).answers.values()
    return answer


def refusal(stub: Stub, message: GenerateRequest) -> tuple[grpc.StatusCode, str]:
    """The status that a call ends with, which is not OK."""
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(message))
    return raised.value.code(), raised.value.details() or ""


def sampling(**parameters: Any) -> generation_pb2.SamplingParameters:
    """The message."""
    return generation_pb2.SamplingParameters(**parameters)
