"""Turns a message's sampling parameters into those that are sampled with, or says which field is wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import GenerationConfig

from fiddler import rpc
from fiddler.v1 import generation_pb2
from gpu_service.model import Model
from gpu_service.model_errors import ModelError
from gpu_service.sampling import Sampler, processors
from gpu_service.sampling_parameters import SamplingParameters

_MAX_SEED = 2**63 - 1  # torch's generator takes no more
_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    # logits divided by less, and multiplied by more, may overflow
    "temperature": (lambda value: value == 0 or 0.001 <= value <= 1e6, "must be 0, or 0.001 to 1000000"),
    "top_k": (lambda value: value >= 0, "must be 0 or above"),
    "top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "must be 0 to 1"),
    "typical_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "repetition_penalty": (lambda value: 0.001 <= value <= 1000, "must be 0.001 to 1000"),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "must be -2 to 2"),
    "seed": (lambda value: value <= _MAX_SEED, "must be at most 2^63 - 1"),
}
"""By name: what a value must be. No comparison with NaN is true."""

NOT_DRAWING: dict[str, float] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
"""What takes the likeliest token, whatever a generation_config says."""


def sampling_of(message: generation_pb2.SamplingParameters, model: Model, draws: bool = True) -> SamplingParameters:
    """Checks the parameters and fills in what is unset.

    Args:
        message: The parameters.
        model: Its vocabulary and generation_config.
        draws: False where a search is asked for, which nothing is drawn in.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the field.
    """
    asked = {name: getattr(message, name) for name in _RULES if message.HasField(name)}  # type: ignore[arg-type]
    _check(asked)
    if not draws:
        _refuse_drawing(asked)
        asked = {**NOT_DRAWING, **asked}
    return SamplingParameters.resolve(model.generation_config, asked, _logit_bias(message.logit_bias, model))


def check_seed(seed: int | None, n: int) -> None:
    """Makes sure that the last of n generations has a seed, too.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the field.
    """
    if seed is not None and seed + n - 1 > _MAX_SEED:
        problem = f"must be at most 2^63 - {n}, since generation i of {n} is seeded with seed + i, got {seed}"
        raise rpc.invalid_argument("sampling.seed", problem)


def check_generation_config(directory: Path, generation_config: GenerationConfig) -> None:
    """Makes sure that what a checkpoint's generation_config.json says can be done.

    Raises:
        ModelError: A setting has a value that nobody could mean.
    """
    try:
        check_defaults(generation_config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{directory / 'generation_config.json'}: {error}") from None


def check_defaults(defaults: GenerationConfig) -> None:
    """Makes sure that a model's own sampling parameters are ones that a request may have.

    Raises:
        ValueError: One is not.
    """
    parameters = SamplingParameters.resolve(defaults, {})
    try:
        _check({name: getattr(parameters, name) for name in _RULES if name != "seed"})
    except rpc.StatusError as error:
        raise ValueError(error.message.removeprefix("sampling.")) from None
    Sampler(parameters, changes=processors(parameters))


def show(value: float) -> str:
    """A number as a message holds it: integers with all their digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _check(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        is_right, rule = _RULES[name]
        if not is_right(value):
            raise rpc.invalid_argument(f"sampling.{name}", f"{rule}, got {show(value)}")


def _refuse_drawing(asked: Mapping[str, float]) -> None:
    for name, value in asked.items():
        if name == "seed" or value != NOT_DRAWING.get(name, value):
            allowed = "unset" if name == "seed" else f"{NOT_DRAWING[name]:g} or unset"
            raise rpc.invalid_argument(
                f"sampling.{name}", f"must be {allowed} with beam_search, which draws nothing, got {show(value)}"
            )


def _logit_bias(biases: Mapping[int, float], model: Model) -> tuple[tuple[int, float], ...]:
    for token_id, bias in biases.items():
        if token_id >= model.vocab_size:
            problem = f"token ids are 0 to {model.vocab_size - 1}, the vocabulary"
        elif not -100 <= bias <= 100:
            problem = f"must be -100 to 100, got {bias:g}"
        else:
            continue
        raise rpc.invalid_argument(f"sampling.logit_bias[{token_id}]", problem)
    return tuple(biases.items())
