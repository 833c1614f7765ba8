"""What becomes of a library's panic."""

import asyncio
from typing import Any

import pytest

from fiddler.v1.generation_pb2 import DetokenizeRequest
from gpu_service.api.generations import Generations
from gpu_service.api.requests import prompts
from gpu_service.errors import ComputationError, PanicError, panics_as_errors


class _Panic(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_exceptions_and_what_ends_a_process_pass(raised: type[BaseException]) -> None:
    with pytest.raises(raised), panics_as_errors():
        raise raised


def test_a_panic_becomes_an_exception_with_its_text() -> None:
    with pytest.raises(PanicError, match="_Panic: retry-limit"), panics_as_errors():
        raise _Panic("retry-limit")


async def test_a_call_in_which_a_library_panics_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*arguments: object) -> None:
        raise _Panic("somewhere")

    monkeypatch.setattr(prompts, "detokenize", panic)
    generations = Generations()
    served: Any = type("Served", (), {"model": None, "tokenizer": None})()
    generations.served = served
    with pytest.raises(ComputationError):
        await generations.detokenize(DetokenizeRequest())
