"""The application: endpoints, errors, and what is done around every request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from client import ClientError
from fiddler import __version__
from http_gateway.errors import ApiError, api_error, invalid_body
from http_gateway.gateway import Gateway
from http_gateway.hosts import KnownHosts
from http_gateway.middleware import BodyLimit, BrowserHeaders, Counting, HeadAsGet
from http_gateway.responses import CallerLeftError
from http_gateway.routes import chat, completions, models, page, probes

_DESCRIPTION = "OpenAI's API for the model that this GPU service serves. docs/http.md describes fields and errors."
_PATHS = (chat.PATH, completions.PATH, "/v1/models")
_CALLER_LEFT = 499  # as nginx logs it; nobody reads it


def create_app(gateway: Gateway) -> FastAPI:
    """The application of one gateway."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(
        title="fiddler", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.gateway = gateway
    for each in (chat, completions, models, probes):
        app.include_router(each.router)
    page.mount(app)
    _handle_errors(app)
    # The last one is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=gateway.settings.max_request_bytes)
    if (names := gateway.settings.hosts) is not None:
        app.add_middleware(KnownHosts, names=names)
    if gateway.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(BrowserHeaders)
    app.add_middleware(Counting)
    return app


def _not_served(request: Request) -> str:
    """What is wrong with a path. Clients that are given the address without /v1 ask for OpenAI's paths without it."""
    path = request.url.path
    hint = f"; the API's base URL ends with /v1: /v1{path}" if f"/v1{path}" in _PATHS else ""
    return f"{request.method} {path} is not served{hint}"


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_the_api(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(ClientError)
    async def of_the_client(request: Request, error: ClientError) -> JSONResponse:
        return api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def of_the_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_body(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        message = _not_served(request) if error.status_code == 404 else str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(CallerLeftError)
    async def of_a_caller_who_left(request: Request, error: CallerLeftError) -> Response:
        return Response(status_code=_CALLER_LEFT)

    @app.exception_handler(Exception)
    async def of_the_gateway(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the gateway failed; its log has the reason").response()
