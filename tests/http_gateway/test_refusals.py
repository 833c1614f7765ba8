"""What a real GPU service refuses is 400 with the field of the HTTP request."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from pair import Pair
from tests.support.http_gateways import COMPLETIONS, calling, error_of


@pytest.fixture(scope="module")
def before_a_pair(pair: Pair) -> Iterator[TestClient]:
    with calling(pair.target) as http:
        yield http


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"logit_bias": {"4000000000": 1}}, "logit_bias[4000000000]"),
    ({"logit_bias": {"5": 1000}}, "logit_bias[5]"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a"] * 100}, "stop"),
    ({"stop_token_ids": [4000000000]}, "stop_token_ids[0]"),
    ({"logprobs": 1000}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [4000000000]}, "prompt[0]"),
    ({"prompt": [5] * 100_000}, "prompt"),
    ({"prompt": [[5], [5, 4000000000]]}, "prompt[1][1]"),
    ({"top_k": 2**31 - 1, "seed": 2**63 - 1, "n": 5}, "seed"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_names_the_field(before_a_pair: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = before_a_pair.post(COMPLETIONS, json={"prompt": [5, 6], "max_tokens": 2, **fields})
    status, found, message = error_of(answer)
    assert (status, found) == (400, param)
    assert message.startswith(f"{param}: ")


def test_a_model_without_a_chat_template_refuses_chats(before_a_pair: TestClient) -> None:
    answer = before_a_pair.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    assert error_of(answer)[:2] == (400, "messages")


def test_the_form_of_an_output_is_kept_and_a_wrong_one_names_its_field(before_a_pair: TestClient) -> None:
    body: dict[str, Any] = {"prompt": [5, 6], "max_tokens": 20, "temperature": 1, "seed": 3}
    for _ in range(3):
        answer = before_a_pair.post(COMPLETIONS, json={**body, "guided_choice": ["yes", "no"]})
        assert answer.json()["choices"][0]["text"] in ("yes", "no")
    wrong = before_a_pair.post(COMPLETIONS, json={**body, "structured_outputs": {"json": {"type": "nothing"}}})
    assert error_of(wrong)[:2] == (400, "structured_outputs.json")
