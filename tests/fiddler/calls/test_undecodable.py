import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fiddler.calls.undecodable import problem_of
from fiddler.v1.generation_pb2 import Chat, ChatMessage, GenerateRequest, SamplingParameters, TokenizeRequest

_NO_TEXT = b"\xff\xfe"


def _spoil(request: GenerateRequest | TokenizeRequest) -> bytes:
    """The message with invalid UTF-8 in place of "??"."""
    data = request.SerializeToString()
    assert data.count(b"??") == 1
    return data.replace(b"??", _NO_TEXT)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(text="??"), "text"),
        (GenerateRequest(text="é", stop=["a", "b??c"]), "stop[1]"),
        (GenerateRequest(text="a", request_id="??"), "request_id"),
        (
            GenerateRequest(
                chat=Chat(messages=[ChatMessage(role="é"), ChatMessage(role="a", content="??")]),
                sampling=SamplingParameters(temperature=1, logit_bias={3: 1.0}),
            ),
            "chat.messages[1].content",
        ),
        (TokenizeRequest(chat=Chat(messages=[ChatMessage(role="??")])), "chat.messages[0].role"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_that_is_not_utf_8_is_named(request_: GenerateRequest | TokenizeRequest, field: str) -> None:
    data = _spoil(request_)
    with pytest.raises(DecodeError):
        type(request_).FromString(data)
    status = problem_of(request_.DESCRIPTOR, data)
    assert (status.code, status.message) == (grpc.StatusCode.INVALID_ARGUMENT, f"{field}: must be UTF-8")


@given(data=st.binary(max_size=40))
def test_of_any_bytes_something_is_said(data: bytes) -> None:
    try:
        GenerateRequest.FromString(data)
    except DecodeError:
        status = problem_of(GenerateRequest.DESCRIPTOR, data)
        message = status.message
    else:
        return
    assert message.endswith(("must be UTF-8", "the message cannot be parsed as a fiddler.v1.GenerateRequest"))
