"""What FastAPI gives to the endpoints: the gateway, and the client that presents the caller's key."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from client import AsyncClient
from http_gateway.gateway import Gateway

_bearer = HTTPBearer(auto_error=False, description="An API key: one of --tokens-file, or a token of the GPU service.")


async def gateway_of(request: Request) -> Gateway:
    """The gateway of the application."""  # asynchronous, since FastAPI runs others in threads
    gateway: Gateway = request.app.state.gateway
    return gateway


async def caller_client(
    request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> AsyncClient:
    """The client that presents the caller's key.

    Raises:
        ApiError: The key is missing or wrong.
    """
    return (await gateway_of(request)).client_of(key.credentials if key else "")


GatewayOf = Annotated[Gateway, Depends(gateway_of)]
CallerClient = Annotated[AsyncClient, Depends(caller_client)]
