"""The values that sampling parameters may have, in a request and in a checkpoint's generation_config.json."""

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import GenerationConfig

from gpu_service.errors import ModelError, RequestError
from gpu_service.sampling.default_values import replace_unusual
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.parameters import SamplingParameters
from gpu_service.sampling.sampler import Sampler

MAX_SEED = 2**63 - 1  # the largest that torch's generator accepts
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 1e6, "must be 0 to 1000000"),
    "top_k": (lambda value: value >= 0, "must be 0 or above"),
    "top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "must be 0 to 1"),
    "typical_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    # logits divided by a smaller number, or multiplied by a larger one, may overflow
    "repetition_penalty": (lambda value: 0.001 <= value <= 1000, "must be 0.001 to 1000"),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
    "seed": (lambda value: value <= MAX_SEED, "must be at most 2^63 - 1"),
}
"""By name: whether a value is allowed, and the rule as a message says it. NaN fails every comparison."""


def check_values(values: Mapping[str, float]) -> None:
    """Checks sampling parameters by name.

    Raises:
        RequestError: A value breaks its rule.
    """
    for name, value in values.items():
        is_right, rule = RULES[name]
        if not is_right(value):
            raise RequestError(name, f"{rule}, got {show(value)}")


def check_generation_config(directory: Path, generation_config: GenerationConfig) -> None:
    """Checks the sampling parameters of a checkpoint's generation_config.json, and replaces unusual ones.

    Raises:
        ModelError: A setting is not a number.
    """
    try:
        replace_unusual(directory / "generation_config.json", generation_config)
        check_defaults(generation_config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{directory / 'generation_config.json'}: {error}") from None


def check_defaults(defaults: GenerationConfig) -> None:
    """Checks that a request may have the sampling parameters of a generation_config.

    Raises:
        ValueError: A value breaks its rule. The text names the parameter.
    """
    parameters = SamplingParameters.resolve(defaults, {})
    try:
        check_values({name: getattr(parameters, name) for name in RULES if name != "seed"})
    except RequestError as error:
        raise ValueError(f"{error.field}: {error}") from None
    Sampler(parameters, processors=processors(parameters))


def show(value: float) -> str:
    """A number as messages show it: integers with all their digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"
