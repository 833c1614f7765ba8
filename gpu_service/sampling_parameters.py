"""How a request's tokens are chosen. Plain values; sampling.py does it. torch is not imported here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig

_TRANSFORMERS_TOP_K = 50
"""What transformers takes where a generation_config samples and says no top_k."""

_OTHERS: dict[str, float | None] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": None,
}
"""By name, what leaves the choice alone."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen, with nothing left unset."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    seed: int | None = None
    """None: a different one each time."""
    repetition_penalty: float = 1.0
    min_p: float = 0.0

    @classmethod
    def resolve(
        cls,
        defaults: "GenerationConfig",
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> "SamplingParameters":
        """Fills what is None from the model's generation_config, where that one samples.

        Raises:
            ValueError: A value of the generation_config is not one that can be sampled with.
        """
        samples = bool(defaults.do_sample)

        def default(name: str, unset: float, neutral: float) -> float:
            return _number(defaults, name, unset) if samples else neutral

        return cls(
            temperature=default("temperature", 1.0, 0.0) if temperature is None else temperature,
            top_k=int(default("top_k", _TRANSFORMERS_TOP_K, 0)) if top_k is None else top_k,
            top_p=default("top_p", 1.0, 1.0) if top_p is None else top_p,
            seed=seed,
            repetition_penalty=_number(defaults, "repetition_penalty", 1.0),
            min_p=default("min_p", 0.0, 0.0),
        )


def _number(defaults: "GenerationConfig", name: str, unset: float) -> float:
    value = getattr(defaults, name)
    if value is None:
        return unset
    if not isinstance(value, int | float):
        raise ValueError(f"{name}: must be a number, got {value!r}")
    return float(value)


def not_honoured(defaults: "GenerationConfig") -> list[str]:
    """Settings of a generation_config that change which token is chosen, and that are not computed here."""
    return [name for name, neutral in _OTHERS.items() if getattr(defaults, name, None) not in (None, neutral)]
