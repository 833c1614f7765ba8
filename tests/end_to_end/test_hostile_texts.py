"""Templates and texts that hang, take all memory or make a library panic: others are served, and the service ends."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import grpc
import pytest

from fiddler.v1.generation_pb2 import Chat, ChatMessage, DetokenizeRequest, GenerateRequest, TokenIds, TokenizeRequest
from pair import Pair
from tests.support.calls import connect, generate_one, refusal, sampling
from tests.support.pairs import start, write_tiny

TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{% if message.content == 'spin' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if message.content == 'bomb' %}{{ 'a' * 3000000000 }}{% endif %}{% endfor %}"
)
BACKTRACKS = "a" * 40 + "b"
GRACE_SECONDS = 2.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose regular expression takes exponential time, and whose decoder panics on the character U+0001."""
    directory = write_tiny(tmp_path_factory.mktemp("hostile"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "^(?:a|aa)+$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    strip = {"type": "Strip", "content": "\x01", "start": 1, "stop": 1}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], strip]}
    path.write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IO[bytes]]:
    with (tmp_path_factory.mktemp("log") / "log").open("w+b") as file:
        yield file


@pytest.fixture(scope="module")
def pair(directory: Path, log: IO[bytes]) -> Iterator[Pair]:
    with start(directory, "--grace-seconds", str(GRACE_SECONDS), log=log) as pair:
        yield pair


def _chat(text: str) -> GenerateRequest:
    return GenerateRequest(
        chat=Chat(messages=[ChatMessage(role="user", content=text)]), max_tokens=2, sampling=sampling(temperature=0)
    )


def test_a_text_on_which_the_tokenizer_panics_is_refused(pair: Pair) -> None:
    with connect(pair.target) as stub:
        for call in (
            lambda: list(stub.Generate(GenerateRequest(text=BACKTRACKS), timeout=60)),
            lambda: stub.Tokenize(TokenizeRequest(text=BACKTRACKS), timeout=60),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert (raised.value.details() or "").startswith("text: the tokenizer cannot encode it: PanicException")
        code, details = refusal(stub, _chat(BACKTRACKS))
        assert (code, details.partition(": PanicException")[0]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "chat.messages: the tokenizer cannot encode it",
        )
        assert len(generate_one(stub, "the experts", max_tokens=2).token_ids) == 2


def test_tokens_on_which_the_tokenizer_panics_end_only_their_call(pair: Pair) -> None:
    with connect(pair.target) as stub:
        (token,) = stub.Tokenize(TokenizeRequest(text="\x01", add_special_tokens=False)).token_ids
        with pytest.raises(grpc.RpcError) as raised:
            stub.Detokenize(DetokenizeRequest(token_ids=[token]), timeout=60)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "token_ids: the tokenizer cannot decode them" in (raised.value.details() or "")
        echoed = GenerateRequest(token_ids=TokenIds(ids=[token]), echo=True, max_tokens=2)
        assert refusal(stub, echoed)[0] == grpc.StatusCode.INTERNAL
        assert len(generate_one(stub, "the experts", max_tokens=2).token_ids) == 2


def test_a_template_that_takes_all_memory_is_refused(pair: Pair) -> None:
    with connect(pair.target) as stub:
        code, details = refusal(stub, _chat("bomb"))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details == "chat.messages: the model's chat template refuses them: it needs too much memory"


def test_endless_templates_hold_up_no_one_and_the_service_ends_in_time(pair: Pair, log: IO[bytes]) -> None:
    """The last test: it stops the pair."""
    with connect(pair.target) as stub, ThreadPoolExecutor(10) as callers:
        list(stub.Generate(_chat("hello"), timeout=60))
        endless = [callers.submit(refusal, stub, _chat("spin")) for _ in range(9)]
        time.sleep(0.2)
        began = time.monotonic()
        assert len(generate_one(stub, "the experts", max_tokens=2).token_ids) == 2
        assert time.monotonic() - began < 10
        assert pair.is_serving(pair.target)
        assert {each.result(120)[0] for each in endless} <= {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        assert "it takes more than 1 s of CPU time" in endless[0].result()[1]
        list(stub.Generate(_chat("hello"), timeout=60))
        endless = [callers.submit(refusal, stub, _chat("spin")) for _ in range(9)]
        time.sleep(0.2)
        began = time.monotonic()
        assert pair.stop("gpu_service") == 0
        assert time.monotonic() - began < GRACE_SECONDS + 10
