"""Checks a message's sampling parameters and turns them into the sampler's. An error names the field."""

from collections.abc import Mapping

from fiddler.v1 import generation_pb2
from gpu_service.errors import RequestError
from gpu_service.model_runner.model import Model
from gpu_service.sampling.parameters import GREEDY_BELOW, SamplingParameters
from gpu_service.sampling.rules import MAX_SEED, RULES, check_values, show

NOT_DRAWING: dict[str, float] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
"""Take the likeliest token, whatever the generation_config says."""


def sampling_of(message: generation_pb2.SamplingParameters, model: Model, draws: bool = True) -> SamplingParameters:
    """Checks the parameters and fills in those that are unset.

    Args:
        message: The parameters.
        model: Its vocabulary and generation_config.
        draws: False for a beam search, which draws nothing.

    Raises:
        RequestError: A field is wrong.
    """
    asked = {name: getattr(message, name) for name in RULES if message.HasField(name)}  # type: ignore[arg-type]
    try:
        check_values(asked)
    except RequestError as error:
        raise RequestError(f"sampling.{error.field}", str(error)) from None
    if not draws:
        _refuse_drawing(asked)
        asked = {**NOT_DRAWING, **asked}
    return SamplingParameters.resolve(model.generation_config, asked, _logit_bias(message.logit_bias, model))


def check_seed(seed: int | None, n: int) -> None:
    """Checks that the last of n generations has a seed, too.

    Raises:
        RequestError: A field is wrong.
    """
    if seed is not None and seed + n - 1 > MAX_SEED:
        problem = f"must be at most 2^63 - {n}, since generation i of {n} is seeded with seed + i, got {seed}"
        raise RequestError("sampling.seed", problem)


def _refuse_drawing(asked: Mapping[str, float]) -> None:
    for name, value in asked.items():
        if name == "temperature" and value < GREEDY_BELOW:
            continue
        if name == "seed" or value != NOT_DRAWING.get(name, value):
            allowed = "unset" if name == "seed" else f"{NOT_DRAWING[name]:g} or unset"
            raise RequestError(
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
        raise RequestError(f"sampling.logit_bias[{token_id}]", problem)
    return tuple(biases.items())
