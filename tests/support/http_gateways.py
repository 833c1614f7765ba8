"""Gateways for the tests: in this process, with a port of its own or without."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from starlette.testclient import TestClient

from http_gateway.app import create_app
from http_gateway.gateway import Gateway
from http_gateway.protocol import Protocol
from http_gateway.settings import Settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def settings(target: str, **changes: Any) -> Settings:
    """Settings without metrics to read, whatever the environment sets."""
    return Settings.model_validate({"target": target, "gpu_metrics": "none", "cpu_metrics": "none", **changes})


@contextmanager
def calling(target: str, **changes: Any) -> Iterator[TestClient]:
    """A client of a gateway without a port."""
    app = create_app(Gateway(settings(target, **changes)))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as http:
        yield http


@contextmanager
def listening(target: str, **changes: Any) -> Iterator[str]:
    """The URL of a gateway with a port, so that callers can leave."""
    config = uvicorn.Config(
        create_app(Gateway(settings(target, **changes))),
        port=0,
        log_config=None,
        http=Protocol,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            if not thread.is_alive():
                raise RuntimeError("the gateway did not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def events(text: str) -> list[Any]:
    """The objects of a stream, and the text of its last event, which is none."""
    lines = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def error_of(answer: httpx2.Response) -> tuple[int, str | None, str]:
    """The status, the field and the message of an error, whose form is checked."""
    content = answer.json()
    assert content.keys() == {"error"}, content
    error = content["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    return answer.status_code, error["param"], error["message"]
