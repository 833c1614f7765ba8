"""How a request's tokens are chosen. Plain values; sampling.py does it. torch is not imported here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig


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

    @classmethod
    def resolve(
        cls,
        defaults: "GenerationConfig",
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> "SamplingParameters":
        """Fills what is None from the model's generation_config, where that one samples."""
        samples = bool(defaults.do_sample)

        def default(value: float | None, neutral: float) -> float:
            return value if samples and value is not None else neutral

        return cls(
            temperature=default(defaults.temperature, float(samples)) if temperature is None else temperature,
            top_k=int(default(defaults.top_k, 0)) if top_k is None else top_k,
            top_p=default(defaults.top_p, 1.0) if top_p is None else top_p,
            seed=seed,
        )
