"""Calls of GenerationService by its stub, without the client, and their responses collected."""

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
    """One generation, collected from its messages."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    complete: Complete = field(default_factory=Complete)
    pieces: list[str] = field(default_factory=list)
    """The texts of its chunks."""


@dataclass
class Call:
    """The answer to a request: its generations by index, and the prompt's log probabilities."""

    answers: dict[int, Answer] = field(default_factory=dict)
    prompt: list[TokenLogprobs] = field(default_factory=list)
    request_id: str = ""

    def answer(self, index: int) -> Answer:
        """The generation of an index, created if this is its first message."""
        return self.answers.setdefault(index, Answer())


@contextmanager
def connect(target: str) -> Iterator[Stub]:
    """A stub on a channel of its own, without limits on the size of messages."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        yield Stub(channel)


def request(prompt: str | list[int], **fields: Any) -> GenerateRequest:
    """A request with a text or token ids as its prompt."""
    if isinstance(prompt, str):
        return GenerateRequest(text=prompt, **fields)
    return GenerateRequest(token_ids=TokenIds(ids=prompt), **fields)


def generate(stub: Stub, prompt: str | list[int], **fields: Any) -> Call:
    """Reads a call to its end and asserts that its messages arrive in a valid order."""
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
            assert not call.answers, "prompt messages precede all others"
            call.prompt += message.prompt.tokens
    assert ended == set(call.answers)
    call.request_id = str(dict(stream.initial_metadata())["fiddler-request-id"])
    return call


def generate_one(stub: Stub, prompt: str | list[int], **fields: Any) -> Answer:
    """As `generate`, for a request with a single generation."""
    (answer,) = generate(stub, prompt, **fields).answers.values()
    return answer


def refusal(stub: Stub, message: GenerateRequest) -> tuple[grpc.StatusCode, str]:
    """The status code and message that a call fails with."""
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.Generate(message))
    return raised.value.code(), raised.value.details() or ""


def sampling(**parameters: Any) -> generation_pb2.SamplingParameters:
    """A SamplingParameters message."""
    return generation_pb2.SamplingParameters(**parameters)
