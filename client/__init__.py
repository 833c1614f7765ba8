"""A streaming client of the GPU service, synchronous and asynchronous.

    with client.Client("127.0.0.1:50051") as connection, connection.generate("Once upon a time") as generation:
        for message in generation:
            print(message)

`python -m client` is its command line. `python -m client.health` asks whether a server is serving.
"""

from typing import TYPE_CHECKING

from client._answers import Answer, ToolCall
from client._errors import (
    BusyError,
    ClientError,
    DeadlineError,
    GenerationCancelledError,
    InvalidRequestError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from client._infos import ModelInfo, RequestLimits, ServerInfo, Tokens
from client._messages import (
    Alternative,
    BestBeam,
    Complete,
    Event,
    FinishReason,
    GenerationChunk,
    MessageDelta,
    PromptLogprobs,
    PromptProgress,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from client._options import ChatMessage, ChatOptions, ConnectionOptions, GenerateOptions

if TYPE_CHECKING:
    from client.async_client import AsyncClient, AsyncGeneration
    from client.client import Client, Generation

__all__ = [
    "Alternative",
    "Answer",
    "AsyncClient",
    "AsyncGeneration",
    "BestBeam",
    "BusyError",
    "ChatMessage",
    "ChatOptions",
    "Chunk",
    "Client",
    "ClientError",
    "Complete",
    "ConnectionOptions",
    "DeadlineError",
    "Event",
    "FinishReason",
    "GenerateOptions",
    "Generation",
    "GenerationCancelledError",
    "GenerationChunk",
    "InvalidRequestError",
    "MessageDelta",
    "ModelInfo",
    "PromptLogprobs",
    "PromptProgress",
    "RequestLimits",
    "ServerError",
    "ServerInfo",
    "TokenLogprobs",
    "Tokens",
    "ToolCall",
    "ToolCallDelta",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]

Chunk = GenerationChunk
"""The earlier name of GenerationChunk, which existing programs may use."""

# Importing gRPC takes longer than the rest of `python -m client --help`, so it is imported when first used.
_LAZY = {
    "AsyncClient": "client.async_client",
    "AsyncGeneration": "client.async_client",
    "Client": "client.client",
    "Generation": "client.client",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
