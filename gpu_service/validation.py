"""Turns a GenerateRequest into what the engine runs, or says which field is wrong."""

import math
from collections.abc import Callable, Iterable

import torch
from transformers import GenerationConfig

from fiddler import rpc
from fiddler.v1 import generation_pb2
from gpu_service.model import Model
from gpu_service.request import Event, Request
from gpu_service.sampling import Sampler
from gpu_service.sampling_parameters import SamplingParameters
from gpu_service.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 256
_MIN_TEMPERATURE = 0.001  # logits divided by less overflow
_MAX_SEED = 2**63 - 1  # torch's generator takes no more


def parse_request(
    message: generation_pb2.GenerateRequest, model: Model, tokenizer: Tokenizer, emit: Callable[[Event], None]
) -> Request:
    """Checks a request and fills in what it leaves unset.

    Args:
        message: The request.
        model: Its limits and defaults.
        tokenizer: Encodes the prompt where it is text.
        emit: Where the request's events go.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the field.
    """
    prompt = _prompt(message, model, tokenizer)
    _check_token_ids(message.stop_token_ids, "stop_token_ids", model)
    return Request(
        prompt=prompt,
        sampling=_sampling(message.sampling, model),
        max_tokens=_max_tokens(message, len(prompt), model),
        eos_ids=model.eos_ids,
        stop_ids=frozenset(message.stop_token_ids),
        emit=emit,
    )


def _prompt(message: generation_pb2.GenerateRequest, model: Model, tokenizer: Tokenizer) -> list[int]:
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise rpc.invalid_argument("prompt", "must be set: either text or token_ids")
    field = "text" if kind == "text" else "token_ids.ids"
    if kind == "text":
        if len(message.text) > model.max_context * tokenizer.longest_token:
            raise rpc.invalid_argument(
                field, f"{len(message.text)} characters are more than the context of {model.max_context} tokens holds"
            )
        prompt = tokenizer.encode(message.text) if message.text else []
    else:
        prompt = list(message.token_ids.ids)
    # a text's too: a tokenizer may have tokens that the model has no embedding for
    _check_token_ids(prompt, field, model)
    if not prompt:
        raise rpc.invalid_argument(field, "must not be empty")
    if len(prompt) >= model.max_context:
        raise rpc.invalid_argument(
            field, f"at most {model.max_context - 1} tokens leave room for one more in the context, got {len(prompt)}"
        )
    return prompt


def _check_token_ids(ids: Iterable[int], field: str, model: Model) -> None:
    for position, token_id in enumerate(ids):
        if token_id >= model.vocab_size:
            raise rpc.invalid_argument(
                f"{field}[{position}]", f"must be 0 to {model.vocab_size - 1}, the vocabulary, got {token_id}"
            )


def _max_tokens(message: generation_pb2.GenerateRequest, prompt_tokens: int, model: Model) -> int:
    room = model.max_context - prompt_tokens
    if not message.HasField("max_tokens"):
        return min(DEFAULT_MAX_TOKENS, room)
    if message.max_tokens < 1:
        raise rpc.invalid_argument("max_tokens", f"must be at least 1, got {message.max_tokens}")
    if message.max_tokens > room:
        raise rpc.invalid_argument(
            "max_tokens",
            f"the context of {model.max_context} tokens leaves room for {room} after the prompt, "
            f"got {message.max_tokens}",
        )
    return message.max_tokens


def _sampling(message: generation_pb2.SamplingParameters, model: Model) -> SamplingParameters:
    def value(name: str) -> float | None:
        return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]

    temperature, top_k, top_p, seed = value("temperature"), value("top_k"), value("top_p"), value("seed")
    _check_sampling(temperature, top_k, top_p, seed)
    return SamplingParameters.resolve(
        model.generation_config,
        temperature,
        None if top_k is None else int(top_k),
        top_p,
        None if seed is None else int(seed),
    )


def check_defaults(defaults: GenerationConfig) -> None:
    """Makes sure that a model's own sampling parameters are ones that a request may have.

    Raises:
        ValueError: One is not.
    """
    parameters = SamplingParameters.resolve(defaults, None, None, None, None)
    try:
        _check_sampling(parameters.temperature, parameters.top_k, parameters.top_p, None)
    except rpc.StatusError as error:
        raise ValueError(error.message.removeprefix("sampling.")) from None
    Sampler(parameters, torch.device("cpu"))


def _check_sampling(temperature: float | None, top_k: float | None, top_p: float | None, seed: float | None) -> None:
    if temperature is not None and temperature != 0 and not _MIN_TEMPERATURE <= temperature < math.inf:
        raise rpc.invalid_argument(
            "sampling.temperature", f"must be 0, or finite and at least {_MIN_TEMPERATURE}, got {temperature:g}"
        )
    if top_k is not None and top_k < 0:
        raise rpc.invalid_argument("sampling.top_k", f"must be 0 or above, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise rpc.invalid_argument("sampling.top_p", f"must be above 0 and at most 1, got {top_p:g}")
    if seed is not None and seed > _MAX_SEED:
        raise rpc.invalid_argument("sampling.seed", f"must be at most 2^63 - 1, got {seed}")
