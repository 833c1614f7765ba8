"""How a request's tokens are chosen, as plain values. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpu_service.models.generation_fields import NOT_COMPUTED

if TYPE_CHECKING:
    from transformers import GenerationConfig

_TRANSFORMERS_TOP_K = 50
"""The top_k that transformers uses if a generation_config samples and sets none."""

GREEDY_BELOW = 0.001
"""A smaller temperature takes the likeliest token, as 0 does: logits divided by it may overflow."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen. Every option has a value."""

    temperature: float = 0.0
    """0: the likeliest token; no positive one is below GREEDY_BELOW."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    seed: int | None = None
    """None: a new one for each request."""
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), no id twice."""
    forced_bos_token_id: int | None = None
    """The first token that a decoder generates; None: it is chosen like the others."""

    @classmethod
    def resolve(
        cls,
        defaults: "GenerationConfig",
        asked: Mapping[str, float],
        logit_bias: tuple[tuple[int, float], ...] = (),
    ) -> "SamplingParameters":
        """Fills in options that a request leaves unset from the model's generation_config, if that one samples.

        Args:
            defaults: The generation_config.
            asked: The options that the request sets, by the names above.
            logit_bias: The request's.

        Raises:
            ValueError: A value of the generation_config is not a number.
        """
        samples = bool(defaults.do_sample)
        values: dict[str, float] = {"repetition_penalty": _number(defaults, "repetition_penalty", 1.0)}
        if samples:
            values |= {
                "temperature": _number(defaults, "temperature", 1.0),
                "top_k": _number(defaults, "top_k", _TRANSFORMERS_TOP_K),
                "top_p": _number(defaults, "top_p", 1.0),
                "min_p": _number(defaults, "min_p", 0.0),
                "typical_p": _number(defaults, "typical_p", 1.0),
            }
        values |= asked
        values["top_k"] = int(values.get("top_k", 0))
        if 0 < values.get("temperature", 0.0) < GREEDY_BELOW:
            values["temperature"] = 0.0
        return cls(**values, logit_bias=logit_bias)  # type: ignore[arg-type]


def _number(defaults: "GenerationConfig", name: str, unset: float) -> float:
    value = getattr(defaults, name)
    if value is None:
        return unset
    if not isinstance(value, int | float):
        raise ValueError(f"{name}: must be a number, got {value!r}")
    return float(value)


def not_honoured(defaults: "GenerationConfig", is_encoder_decoder: bool = False) -> list[str]:
    """Settings of a generation_config that change which token is chosen and that this service ignores.

    Args:
        defaults: The generation_config.
        is_encoder_decoder: Whether the model has an encoder. Its first token may be forced, which is computed here.
    """
    names = [name for name, neutral in NOT_COMPUTED.items() if getattr(defaults, name, None) not in (None, neutral, [])]
    return [name for name in names if not (is_encoder_decoder and name == "forced_bos_token_id")]


@dataclass(frozen=True, slots=True)
class BeamParameters:
    """How beams are searched, with transformers' names and meanings."""

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    stream_best: bool = False
