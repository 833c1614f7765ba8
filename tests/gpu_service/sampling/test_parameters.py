import pytest
from transformers import GenerationConfig

from gpu_service.sampling.parameters import SamplingParameters, not_honoured


def test_what_is_not_honoured_is_known() -> None:
    plain = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, typical_p=0.5, repetition_penalty=1.1)  # type: ignore[no-untyped-call]
    assert not_honoured(plain) == []
    assert not_honoured(GenerationConfig(no_repeat_ngram_size=3, eta_cutoff=0.5)) == [  # type: ignore[no-untyped-call]
        "eta_cutoff",
        "no_repeat_ngram_size",
    ]


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"do_sample": False, "temperature": 0.5}, {}, SamplingParameters(0.0, 0, 1.0)),
        ({"do_sample": True}, {}, SamplingParameters(1.0, 50, 1.0)),
        ({"do_sample": True, "top_k": 0}, {}, SamplingParameters(1.0, 0, 1.0)),
        ({"do_sample": True, "min_p": 0.1}, {}, SamplingParameters(1.0, 50, 1.0, min_p=0.1)),
        ({"do_sample": True, "typical_p": 0.4}, {}, SamplingParameters(1.0, 50, 1.0, typical_p=0.4)),
        ({"do_sample": True, "typical_p": 0.4}, {"typical_p": 1.0}, SamplingParameters(1.0, 50)),
        ({"repetition_penalty": 1.2}, {}, SamplingParameters(repetition_penalty=1.2)),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.0}, SamplingParameters()),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {},
            SamplingParameters(0.6, 20, 0.95),
        ),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0}, SamplingParameters(0.0, 20, 1.0)),
        ({"do_sample": True, "top_k": 20}, {"top_k": 0, "top_p": 0.5}, SamplingParameters(1.0, 0, 0.5)),
        ({"do_sample": False, "top_k": 20}, {"temperature": 0.9}, SamplingParameters(0.9, 0, 1.0)),
        ({}, {"frequency_penalty": 0.5, "seed": 3}, SamplingParameters(frequency_penalty=0.5, seed=3)),
    ],
)  # fmt: skip
def test_what_is_unset_follows_the_generation_config(
    config: dict[str, float], asked: dict[str, float], expected: SamplingParameters
) -> None:
    defaults = GenerationConfig(**{"top_k": None, "top_p": None, "temperature": None} | config)  # type: ignore[no-untyped-call]
    assert SamplingParameters.resolve(defaults, asked) == expected
