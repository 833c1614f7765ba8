"""Sampled, greedy and beam-searched tokens equal transformers', family by family, through real services."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from fiddler.v1 import generation_pb2
from tests.support.calls import Answer, Stub, connect, generate, generate_one, sampling
from tests.support.pairs import start

NUM_TOKENS = 20
NUM_BEAMS = (1, 4, 8, 16)
MAX_SLOTS = sum(NUM_BEAMS) + 4
"""For all beams and four other requests at once."""
LOGPROB_TOLERANCE = 1e-4
EOS = 2

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 30},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "typical_p": 0.7},
    {"temperature": 1.1, "repetition_penalty": 1.3, "top_p": 0.95},
    {"temperature": 0.8, "logit_bias": {5: 4.0, 9: -3.5}},
    {"temperature": 0.0, "repetition_penalty": 1.2},
]
_ON_DEMO = pytest.mark.parametrize("directory", ["demo"], indirect=True)
PROMPTS = [[5, 9, 11], [7] * 17 + [30, 31], list(range(40, 110)), [99]]


@pytest.fixture(scope="module")
def stub(directory: Path) -> Iterator[Stub]:
    with start(directory, "--max-slots", str(MAX_SLOTS)) as pair, connect(pair.target) as stub:
        yield stub


def _expected(model: Any, prompt: list[int], settings: dict[str, Any], seed: int) -> tuple[list[int], torch.Tensor]:
    """What transformers generates, and the logits [tokens, vocab] that chose it."""
    theirs: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
    if "logit_bias" in theirs:
        theirs["sequence_bias"] = {(token,): bias for token, bias in theirs.pop("logit_bias").items()}
    if settings["temperature"] == 0:
        theirs["temperature"] = 1.0
    torch.manual_seed(seed)
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=settings["temperature"] > 0, max_new_tokens=NUM_TOKENS, output_logits=True, pad_token_id=0,
            eos_token_id=model.generation_config.eos_token_id, return_dict_in_generate=True, **theirs,
        ),
    )  # fmt: skip
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).float()


def test_a_seed_draws_the_tokens_of_transformers_alone_and_among_seven_others(stub: Stub, model: Any) -> None:
    requests = [(PROMPTS[number % len(PROMPTS)], settings, 100 + number) for number, settings in enumerate(SETTINGS)]
    expected = [_expected(model, *each)[0] for each in requests]
    assert len({tuple(tokens) for tokens in expected}) == len(requests)

    def draw(request: tuple[list[int], dict[str, Any], int]) -> list[int]:
        prompt, settings, seed = request
        parameters = sampling(**settings, seed=seed)
        return generate_one(stub, prompt, max_tokens=NUM_TOKENS, sampling=parameters).token_ids

    assert [draw(each) for each in requests] == expected
    with ThreadPoolExecutor(len(requests)) as threads:
        assert list(threads.map(draw, requests)) == expected


@dataclass(frozen=True)
class _Kind:
    """A request, and transformers' tokens for each of its generations."""

    prompt: list[int]
    fields: dict[str, Any]
    expected: list[list[int]]

    def ask(self, stub: Stub) -> list[list[int]]:
        answers = generate(stub, self.prompt, max_tokens=NUM_TOKENS, **self.fields).answers
        ordered = [answers[index] for index in sorted(answers)]
        return [list(each.complete.token_ids) if "beam_search" in self.fields else each.token_ids for each in ordered]


def _taken(model: Any, prompt: list[int]) -> _Kind:
    fields = {"sampling": sampling(temperature=0)}
    return _Kind(prompt, fields, [_expected(model, prompt, {"temperature": 0}, 0)[0]])


def _drawn(model: Any, prompt: list[int], seed: int) -> _Kind:
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.9}
    return _Kind(prompt, {"sampling": sampling(**settings, seed=seed)}, [_expected(model, prompt, settings, seed)[0]])


def _up_to(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Without the padding after an end."""
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


def _searched(model: Any, prompt: list[int], num_beams: int, ends: Sequence[int]) -> _Kind:
    count = min(num_beams, 3)
    beams = model.generate(
        torch.tensor([prompt]),
        num_beams=num_beams,
        num_return_sequences=count,
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
    )
    expected = [_up_to(beam, ends) for beam in beams[:, len(prompt) :].tolist()]
    search = {"num_beams": num_beams, "num_return_sequences": count}
    return _Kind(prompt, {"beam_search": search, "stop_token_ids": ends, "ignore_eos": True}, expected)


def test_every_kind_of_request_is_the_same_alone_and_with_seven_others_of_all_kinds(stub: Stub, model: Any) -> None:
    """Two greedy requests, two that draw, and beams, some of which two tokens end early."""
    best = _searched(model, PROMPTS[1], 4, []).expected[0]
    ends = [best[NUM_TOKENS // 3], best[-2]]
    kinds = [
        *(_taken(model, prompt) for prompt in PROMPTS[:2]),
        *(_drawn(model, prompt, 40 + len(prompt)) for prompt in PROMPTS[2:]),
        *(_searched(model, PROMPTS[1], num_beams, ends) for num_beams in NUM_BEAMS),
    ]
    assert len(kinds) == 8
    assert any(len(tokens) < NUM_TOKENS for kind in kinds[-len(NUM_BEAMS) :] for tokens in kind.expected)
    assert [kind.ask(stub) for kind in kinds] == [kind.expected for kind in kinds]
    with ThreadPoolExecutor(len(kinds)) as threads:
        together = list(threads.map(lambda kind: kind.ask(stub), kinds))
    assert together == [kind.expected for kind in kinds]


def test_generation_i_of_n_is_the_one_of_seed_plus_i(stub: Stub, model: Any) -> None:
    settings = {"temperature": 1.0, "top_p": 0.9}
    call = generate(stub, PROMPTS[1], max_tokens=NUM_TOKENS, n=4, sampling=sampling(**settings, seed=7))
    expected = [_expected(model, PROMPTS[1], settings, 7 + index)[0] for index in range(4)]
    assert [call.answers[index].token_ids for index in range(4)] == expected
    assert len({tuple(tokens) for tokens in expected}) == 4


def test_log_probabilities_are_the_models_own_whatever_changes_the_choice(stub: Stub, model: Any) -> None:
    settings = {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.4}
    tokens, logits = _expected(model, PROMPTS[2], settings, 5)
    parameters = sampling(**settings, seed=5)
    answer = generate_one(stub, PROMPTS[2], max_tokens=NUM_TOKENS, logprobs=3, sampling=parameters)
    assert answer.token_ids == tokens
    _assert_logprobs(answer.logprobs, tokens, logits, 3)


def test_the_prompts_log_probabilities_are_those_of_a_forward(stub: Stub, model: Any) -> None:
    prompt = PROMPTS[2]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0].float()
    plain = generate_one(stub, prompt, max_tokens=4, sampling=sampling(temperature=0))
    call = generate(stub, prompt, max_tokens=4, prompt_logprobs=2, echo=True, sampling=sampling(temperature=0))
    first, *rest = call.prompt
    assert (first.token_id, first.HasField("logprob"), len(first.top)) == (prompt[0], False, 0)
    _assert_logprobs(rest, prompt[1:], logits[:-1], 2)
    assert call.answers[0].token_ids == [*prompt, *plain.token_ids]
    assert not call.answers[0].logprobs


def _assert_logprobs(told: Any, tokens: list[int], logits: torch.Tensor, num_top: int) -> None:
    """Compares alternatives by their values, since almost equal ones may change places."""
    expected = torch.log_softmax(logits, -1)
    assert [each.token_id for each in told] == tokens
    for row, each in zip(expected, told, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id].item(), abs=LOGPROB_TOLERANCE)
        top = [other.logprob for other in each.top]
        assert top == pytest.approx(row.topk(num_top).values.tolist(), abs=LOGPROB_TOLERANCE)
        for other in each.top:
            assert other.logprob == pytest.approx(row[other.token_id].item(), abs=LOGPROB_TOLERANCE)


def _ending(stub: Stub, **fields: Any) -> Answer:
    """A model that would end at once."""
    parameters = sampling(temperature=0, logit_bias={EOS: 100})
    return generate_one(stub, "It was a fine morning", max_tokens=9, sampling=parameters, **fields)


@_ON_DEMO
def test_min_tokens_and_ignore_eos_are_about_when_a_generation_may_end(stub: Stub) -> None:
    ended = _ending(stub)
    assert ended.token_ids == [EOS]
    assert ended.complete.finish_reason == generation_pb2.FINISH_REASON_EOS
    later = _ending(stub, min_tokens=4)
    assert later.token_ids[4:] == [EOS]
    assert EOS not in later.token_ids[:4]
    never = _ending(stub, ignore_eos=True)
    assert never.token_ids == [EOS] * 9
    assert never.complete.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    stopped = _ending(stub, ignore_eos=True, min_tokens=2, stop_token_ids=[EOS])
    assert stopped.token_ids[2:] == [EOS]
    assert stopped.complete.finish_reason == generation_pb2.FINISH_REASON_STOP


@_ON_DEMO
def test_frequency_and_presence_keep_a_greedy_model_from_repeating_itself(stub: Stub) -> None:
    prompt = "the the the the the the the the"
    plain = generate_one(stub, prompt, max_tokens=30, sampling=sampling(temperature=0)).token_ids
    parameters = sampling(temperature=0, frequency_penalty=2, presence_penalty=2)
    varied = generate_one(stub, prompt, max_tokens=30, sampling=parameters).token_ids
    assert len(set(varied)) > len(set(plain))
