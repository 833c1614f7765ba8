import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

from gpu_service import sampling
from gpu_service.sampling import Sampler
from gpu_service.sampling_parameters import SamplingParameters, not_honoured
from tests import checkpoints

CPU = torch.device("cpu")


def _sampler(**parameters: float | None) -> Sampler:
    return Sampler(SamplingParameters(**parameters), CPU)  # type: ignore[arg-type]


def sample(logits: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    """For samplers that do not look at the text so far."""
    return sampling.sample(logits, samplers, [([], [])] * len(samplers))


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    assert sample(logits, [_sampler(), _sampler()]) == [1, 0]


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_p": 0.6}, {"top_p": 0.6}),
        ({"temperature": 1.6, "top_k": 40, "top_p": 0.9}, {"temperature": 1.6, "top_k": 40, "top_p": 0.9}),
        ({"min_p": 0.02}, {"min_p": 0.02}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ],
    ids=str,
)
def test_a_seed_draws_the_tokens_of_transformers(settings: dict[str, float], parameters: dict[str, float]) -> None:
    """Step by step on transformers' own logits, so that only sampling is compared."""
    model = AutoModelForCausalLM.from_config(checkpoints.build("mixtral", eos_token_id=None).config).eval()  # type: ignore[no-untyped-call]
    prompt = torch.tensor([[3, 4, 5]])
    torch.manual_seed(11)
    output = model.generate(
        prompt,
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, max_new_tokens=20, output_logits=True, return_dict_in_generate=True,
            **{"top_k": 0, "top_p": 1.0, "temperature": 1.0} | settings,
        ),
    )  # fmt: skip
    sampler = _sampler(**{"temperature": 1.0, "seed": 11} | parameters)
    drawn: list[int] = []
    for logits in output.logits:
        drawn += sampling.sample(logits.float(), [sampler], [(prompt[0].tolist(), drawn)])
    assert drawn == output.sequences[0, 3:].tolist()
    assert len(set(drawn)) > 3


@given(others=st.integers(0, 4), position=st.integers(0, 4))
def test_who_else_is_in_the_batch_changes_nothing(others: int, position: int) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(3))
    alone = _sampler(temperature=1.0, seed=5)
    expected = [sample(row[None], [alone])[0] for row in logits]
    sampler = _sampler(temperature=1.0, seed=5)
    neighbours = [_sampler(temperature=2.0, seed=seed) for seed in range(others)]
    samplers = [*neighbours[:position], sampler, *neighbours[position:]]
    where = samplers.index(sampler)
    drawn = []
    for row in logits:
        batch = torch.randn(len(samplers), 50)
        batch[where] = row
        drawn.append(sample(batch, samplers)[where])
    assert drawn == expected


def test_a_greedy_choice_is_penalised_for_repetition() -> None:
    logits = torch.tensor([[3.0, 2.5, -1.0]])
    sampler = _sampler(repetition_penalty=1.5)
    assert sampling.sample(logits, [sampler], [([0], [])]) == [1]
    assert sampling.sample(logits, [sampler], [([2], [2])]) == [0]


def test_what_is_not_honoured_is_known() -> None:
    plain = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)  # type: ignore[no-untyped-call]
    assert not_honoured(plain) == []
    assert not_honoured(GenerationConfig(no_repeat_ngram_size=3, typical_p=0.5)) == [  # type: ignore[no-untyped-call]
        "typical_p",
        "no_repeat_ngram_size",
    ]


def test_without_a_seed_two_requests_differ() -> None:
    logits = torch.zeros(1, 1000)
    assert sample(logits, [_sampler(temperature=1.0)]) != sample(logits, [_sampler(temperature=1.0)])


@pytest.mark.parametrize(
    ("config", "given_parameters", "expected"),
    [
        ({"do_sample": False, "temperature": 0.5}, {}, SamplingParameters(0.0, 0, 1.0)),
        ({"do_sample": True}, {}, SamplingParameters(1.0, 50, 1.0)),
        ({"do_sample": True, "top_k": 0}, {}, SamplingParameters(1.0, 0, 1.0)),
        ({"do_sample": True, "min_p": 0.1}, {}, SamplingParameters(1.0, 50, 1.0, min_p=0.1)),
        ({"repetition_penalty": 1.2}, {}, SamplingParameters(repetition_penalty=1.2)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {},
            SamplingParameters(0.6, 20, 0.95),
        ),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0}, SamplingParameters(0.0, 20, 1.0)),
        ({"do_sample": True, "top_k": 20}, {"top_k": 0, "top_p": 0.5}, SamplingParameters(1.0, 0, 0.5)),
        ({"do_sample": False, "top_k": 20}, {"temperature": 0.9}, SamplingParameters(0.9, 0, 1.0)),
    ],
)
def test_what_is_unset_follows_the_generation_config(
    config: dict[str, float], given_parameters: dict[str, float], expected: SamplingParameters
) -> None:
    unset = {"temperature": None, "top_k": None, "top_p": None, "seed": None}
    defaults = GenerationConfig(**{"top_k": None, "top_p": None, "temperature": None} | config)  # type: ignore[no-untyped-call]
    assert SamplingParameters.resolve(defaults, **unset | given_parameters) == expected  # type: ignore[arg-type]
