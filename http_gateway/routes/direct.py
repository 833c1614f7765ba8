"""Routes of the endpoints that generate, which add their own time to that of the first token."""

import inspect
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from typing_extensions import override

from http_gateway.access import caller_client, gateway_of, key_of
from http_gateway.errors import ApiError
from http_gateway.responses import CallerLeftError


class DirectRoute(APIRoute):
    """Calls an endpoint without FastAPI's search for what to call it with, which takes as long as all the rest.

    The endpoint takes body, request, gateway and client. FastAPI still describes it in /docs by its signature.
    """

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        form: type[BaseModel] = inspect.get_annotations(endpoint, eval_str=True)["body"]

        async def handle(request: Request) -> Response:
            try:
                content = await request.body()
            except ClientDisconnect:
                raise CallerLeftError from None
            body = _parsed(content, form)
            client = await caller_client(request, await key_of(request))
            return await endpoint(body, request, await gateway_of(request), client)

        return handle


def _parsed(content: bytes, form: type[BaseModel]) -> BaseModel:
    """The body of a request.

    Raises:
        ApiError: It is not JSON.
        RequestValidationError: It has not the form of its endpoint.
    """
    try:
        # not pydantic's parser, whose error for text that is not valid Unicode does not name the field
        fields = json.loads(content)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # not UTF-8, a number of too many digits, or too deep
        raise ApiError(400, "the body is not JSON: it cannot be parsed") from None
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems) from None
