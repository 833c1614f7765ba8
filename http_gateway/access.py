"""What FastAPI gives to the endpoints: the gateway, and the client that presents the caller's key."""

import re
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from client import AsyncClient
from http_gateway.gateway import Gateway

# W3C's Trace Context. The GPU service makes the spans; what is malformed is dropped, as the standard says.
_TRACE = {"traceparent": r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", "tracestate": r"[\x20-\x7e]{1,512}"}
key_of = HTTPBearer(auto_error=False, description="An API key: one of --tokens-file, or a token of the GPU service.")


async def gateway_of(request: Request) -> Gateway:
    """The gateway of the application."""  # asynchronous, since FastAPI runs others in threads
    gateway: Gateway = request.app.state.gateway
    return gateway


async def caller_client(
    request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Depends(key_of)]
) -> AsyncClient:
    """The client that presents the caller's key, and says which trace a request belongs to.

    Raises:
        ApiError: The key is missing or wrong.
    """
    client = (await gateway_of(request)).client_of(key.credentials if key else "")
    trace = {name: request.headers.get(name, "") for name in _TRACE}
    passed = {name: value for name, value in trace.items() if re.fullmatch(_TRACE[name], value)}
    return client.with_metadata(passed) if passed else client


GatewayOf = Annotated[Gateway, Depends(gateway_of)]
CallerClient = Annotated[AsyncClient, Depends(caller_client)]
