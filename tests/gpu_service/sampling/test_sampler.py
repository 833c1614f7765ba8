"""What a sampler chooses, against transformers' generate and against itself in other batches."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from gpu_service.errors import NonFiniteError
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.outputs import Ending, TokenLogprobs
from gpu_service.sampling.parameters import SamplingParameters
from gpu_service.sampling.sampler import History, Sampler, choose
from tests.support import checkpoints

PROMPT = [3, 4, 5, 4]
END_IDS = {2, 17}
NUM_TOKENS = 12
NEUTRAL = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "min_p": None, "typical_p": 1.0}


def _sampler(index: int = 0, **parameters: Any) -> Sampler:
    return Sampler(SamplingParameters(**parameters), index=index)


def _with_changes(
    parameters: SamplingParameters, prompt: list[int], min_tokens: int = 0, end_ids: Collection[int] = ()
) -> Sampler:
    ending = Ending(1000, eos_ids=frozenset(end_ids), min_tokens=min_tokens)
    chain = processors(parameters, ending, preceding_length=len(prompt))
    return Sampler(parameters, preceding=prompt, processors=chain)


def _choose(
    logits: torch.Tensor, samplers: Sequence[Sampler], outputs: Sequence[Sequence[int]] | None = None
) -> list[int]:
    """One token for each row. Without `outputs`, nothing has been generated yet, or the samplers do not use it."""
    outcomes = choose(logits, samplers, outputs or [[]] * len(samplers), num_top=[None] * len(samplers))
    return [outcome.token_id for outcome in map(_returned, outcomes)]


def _returned(outcome: TokenLogprobs | Exception) -> TokenLogprobs:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class _OpenAIPenalties(LogitsProcessor):
    """The formula of OpenAI's documentation, literally."""

    def __init__(self, frequency: float, presence: float) -> None:
        self.frequency, self.presence = frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        scores = scores.clone()
        generated = input_ids[0, len(PROMPT) :].tolist()
        for token in set(generated):
            scores[0, token] -= generated.count(token) * self.frequency + self.presence
        return scores  # type: ignore[return-value]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    overrides: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return checkpoints.build("mixtral", **overrides, std=0.5, bos_token_id=None, eos_token_id=None)


def _generate(model: Any, seed: int, **generation: Any) -> tuple[list[int], tuple[torch.Tensor, ...]]:
    """The tokens that transformers draws, and the model's logits that they are drawn from."""
    frequency, presence = generation.pop("frequency_penalty", 0.0), generation.pop("presence_penalty", 0.0)
    custom = [_OpenAIPenalties(frequency, presence)] if frequency or presence else []
    torch.manual_seed(seed)
    output = model.generate(
        torch.tensor([PROMPT]),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=NUM_TOKENS, output_logits=True, return_dict_in_generate=True, pad_token_id=0, **generation
        ),
        logits_processor=LogitsProcessorList(custom),
    )
    return output.sequences[0, len(PROMPT) :].tolist(), output.logits


def _replay(sampler: Sampler, logits: tuple[torch.Tensor, ...]) -> list[int]:
    """The tokens that the sampler draws from the same logits."""
    output: list[int] = []
    for step in logits:
        output += _choose(step.float(), [sampler], [output])
    return output


_PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.1, 3),
        "top_k": st.integers(0, 400),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 0.5),
        "typical_p": st.floats(0.05, 1),
        "repetition_penalty": st.floats(0.5, 3),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(
            st.integers(0, checkpoints.VOCAB_SIZE - 1), st.floats(-100, 100), min_size=1, max_size=5
        ),
        "min_tokens": st.integers(1, NUM_TOKENS),
    },
)


@settings(max_examples=60)
@given(asked=_PARAMETERS, draws=st.booleans(), seed=st.integers(0, 2**40))
def test_any_parameters_choose_what_generate_chooses(
    model: PreTrainedModel, asked: dict[str, Any], draws: bool, seed: int
) -> None:
    """Step by step on transformers' own logits, so that only the sampling is compared."""
    theirs = NEUTRAL | {name: value for name, value in asked.items() if name not in ("logit_bias", "min_tokens")}
    if "logit_bias" in asked:
        theirs["sequence_bias"] = {(token,): bias for token, bias in asked["logit_bias"].items()}
    if "min_tokens" in asked:
        theirs["min_new_tokens"] = asked["min_tokens"]
    expected, logits = _generate(model, seed, do_sample=draws, eos_token_id=sorted(END_IDS), **theirs)
    ours = {"temperature": 1.0, "seed": seed} | {name: asked[name] for name in asked if name != "min_tokens"}
    ours["logit_bias"] = tuple(asked.get("logit_bias", {}).items())
    if not draws:
        ours["temperature"] = 0.0
    sampler = _with_changes(SamplingParameters(**ours), PROMPT, asked.get("min_tokens", 0), END_IDS)
    assert _replay(sampler, logits) == expected


def test_generation_i_is_seeded_with_seed_plus_i(model: PreTrainedModel) -> None:
    drawn = []
    for index in range(3):
        expected, logits = _generate(model, 11 + index, do_sample=True, **NEUTRAL)
        assert _replay(_sampler(index, temperature=1.0, seed=11), logits) == expected
        drawn.append(expected)
    assert len({tuple(tokens) for tokens in drawn}) == 3


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    assert _choose(logits, [_sampler(), _sampler()]) == [1, 0]


@settings(max_examples=30)
@given(data=st.data(), others=st.integers(0, 4), position=st.integers(0, 4))
def test_who_else_is_in_the_batch_changes_nothing(data: st.DataObject, others: int, position: int) -> None:
    """Neither rows that are warped alike, and computed together with it, nor others."""
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(3))
    warped: list[dict[str, Any]] = [
        {},
        {"top_p": 0.7},
        {"top_k": 9, "min_p": 0.05},
        {"typical_p": 0.6},
        {"temperature": 0.0},
    ]
    mine = data.draw(st.sampled_from(warped))
    alone = _sampler(**{"temperature": 1.0, "seed": 5, **mine})
    expected = [_choose(row[None], [alone])[0] for row in logits]
    sampler = _sampler(**{"temperature": 1.0, "seed": 5, **mine})
    neighbours = [
        _sampler(**{"temperature": 1.0, "seed": seed, **data.draw(st.sampled_from(warped))}) for seed in range(others)
    ]
    samplers = [*neighbours[:position], sampler, *neighbours[position:]]
    where = samplers.index(sampler)
    drawn = []
    for row in logits:
        batch = torch.randn(len(samplers), 50)
        batch[where] = row
        drawn.append(_choose(batch, samplers)[where])
    assert drawn == expected


_OTHER_VALUES: dict[str, Any] = {
    "temperature": 0.3,
    "top_k": 4,
    "top_p": 0.3,
    "seed": 6,
    "repetition_penalty": 3.0,
    "min_p": 0.5,
    "typical_p": 0.2,
    "frequency_penalty": 2.0,
    "presence_penalty": 2.0,
    "logit_bias": ((7, 5.0),),
    "forced_bos_token_id": 9,
}
"""For each option, a value that changes the tokens that `_DRAWN` draws. A new option needs one, too."""
_DRAWN = SamplingParameters(temperature=1.0, seed=5)


def _drawn_together(*batch: SamplingParameters) -> list[list[int]]:
    """The tokens of rows that are drawn together, all from the same logits."""
    samplers = [_with_changes(parameters, [1]) for parameters in batch]
    outputs: list[list[int]] = [[] for _ in batch]
    for row in torch.randn(40, 30, generator=torch.Generator().manual_seed(3)):
        for output, token in zip(outputs, _choose(row.repeat(len(batch), 1), samplers, outputs), strict=True):
            output.append(token)
    return outputs


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SamplingParameters)])
def test_a_row_draws_as_it_draws_alone_next_to_one_that_differs_in_one_option(name: str) -> None:
    """In either order, since rows that are warped together are warped with the settings of the first."""
    plain, other = _DRAWN, dataclasses.replace(_DRAWN, **{name: _OTHER_VALUES[name]})
    (alone,), (other_alone,) = _drawn_together(plain), _drawn_together(other)
    assert alone != other_alone, "the value changes nothing, so that the test would see nothing"
    assert _drawn_together(plain, other) == [alone, other_alone]
    assert _drawn_together(other, plain) == [other_alone, alone]


def test_a_greedy_choice_is_penalised_for_repetition() -> None:
    logits = torch.tensor([[3.0, 2.5, -1.0]])
    parameters = SamplingParameters(repetition_penalty=1.5)
    assert _choose(logits, [_with_changes(parameters, [0])], [[]]) == [1]
    assert _choose(logits, [_with_changes(parameters, [2])], [[2]]) == [0]


def test_once_min_tokens_are_made_a_greedy_choice_takes_the_logits_as_they_are() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    sampler = _with_changes(SamplingParameters(), [1], min_tokens=2, end_ids={2})
    assert sampler.changes_logits
    output: list[int] = []
    for _ in range(4):
        output += _choose(logits, [sampler], [output])
    assert output == [1, 1, 2, 2]
    assert not sampler.changes_logits


@given(sizes=st.lists(st.integers(0, 300), max_size=6))
def test_a_history_is_the_prompt_and_the_output_however_it_grows(sizes: list[int]) -> None:
    history, output = History(PROMPT, torch.device("cpu")), list[int]()
    for size in sizes:
        output += range(len(output), len(output) + size)
        assert history.read(output).tolist() == [[*PROMPT, *output]]


def test_log_probabilities_are_told_of_rows_that_want_them() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0], [5.0, 0.0, 1.0]])
    samplers = [_sampler(), _with_changes(SamplingParameters(logit_bias=((1, 9.0),)), []), _sampler()]
    expected = torch.log_softmax(logits, -1).tolist()
    none, biased, greedy = choose(logits, samplers, [[]] * 3, num_top=[None, 2, 0])
    assert none == TokenLogprobs(2, None)
    assert biased == TokenLogprobs(1, expected[1][1], ((0, expected[1][0]), (2, expected[1][2])))
    assert greedy == TokenLogprobs(0, expected[2][0])


def test_without_a_seed_two_requests_differ() -> None:
    logits = torch.zeros(1, 1000)
    assert _choose(logits, [_sampler(temperature=1.0)]) != _choose(logits, [_sampler(temperature=1.0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_told_and_the_others_are_chosen_as_alone(temperature: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    expected = _choose(logits[[0, 2]], [_sampler(seed=each, temperature=temperature) for each in (0, 2)])
    logits[1, 7] = torch.inf
    samplers = [_sampler(seed=each, temperature=temperature) for each in range(3)]
    first, second, third = choose(logits, samplers, [[]] * 3, num_top=[None, None, 2])
    assert isinstance(second, NonFiniteError)
    assert [_returned(first).token_id, _returned(third).token_id] == expected
    assert len(_returned(third).top) == 2
