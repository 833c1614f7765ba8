"""Checks a GenerateRequest and turns it into the engine's request. An error names the field."""

import re
import reprlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from fiddler.v1 import generation_pb2
from gpu_service.api.requests import prompts
from gpu_service.api.requests.call_constraints import call_constraint_of
from gpu_service.api.requests.constraints import constraint_of
from gpu_service.api.requests.sampling_validation import check_seed, sampling_of
from gpu_service.engine.events import Event
from gpu_service.engine.request import Request
from gpu_service.errors import ContextLengthError, RequestError
from gpu_service.model_runner.model import Model
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters
from gpu_service.sampling.rules import show
from gpu_service.settings import RequestLimits
from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer

_MAX_LENGTH_PENALTY = 5  # the length of a context to a higher power overflows float32
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")  # fits into a metadata value
_EARLY_STOPPING: dict[generation_pb2.BeamStop.ValueType, bool | Literal["never"]] = {
    generation_pb2.BEAM_STOP_HEURISTIC: False,
    generation_pb2.BEAM_STOP_EARLY: True,
    generation_pb2.BEAM_STOP_NEVER: "never",
}


def parse_request(
    message: generation_pb2.GenerateRequest,
    *,
    model: Model,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    emit: Callable[[Event], None],
    longest: Callable[[int], int] | None = None,
    deadline: float | None = None,
) -> Request:
    """Checks a request and fills in the fields that are unset.

    Args:
        message: The request.
        model: Its limits and defaults.
        tokenizer: Encodes a prompt that is text or a chat.
        limits: The most that it may ask for.
        emit: Takes the request's events, from the engine's thread.
        longest: How many tokens each of so many KV rows may hold, if the context is not all that bounds them.
        deadline: When the caller leaves, on the clock of time.monotonic(); None: never.

    Raises:
        RequestError: A field is wrong.
    """
    beam = _beam(message, limits)
    sampling = sampling_of(message.sampling, model, draws=beam is None)
    n = _number_of_generations(message, sampling, limits)
    logprobs = _alternatives(message, "logprobs", model=model, limits=limits)
    prompt_logprobs = _alternatives(message, "prompt_logprobs", model=model, limits=limits)
    _check_continues(message, model)
    sampling = replace(sampling, forced_bos_token_id=_forced_bos_token_id(message, model))
    stop_ids = _stop_ids(message, model)
    eos_ids = frozenset[int]() if message.ignore_eos else model.eos_ids
    _check_stop(message, limits)
    grammar = constraint_of(message, model, tokenizer, limits)
    request_id = _request_id(message)
    prompt = prompts.of_request(message, model, tokenizer)  # after the other checks, since it may take long
    calls = call_constraint_of(message, prompt, model=model, tokenizer=tokenizer, limits=limits)
    num_rows = n if beam is None else beam.num_beams
    room = (model.max_context if longest is None else longest(num_rows)) - len(prompt)
    max_tokens = _max_tokens(message, len(prompt), room, model=model, limits=limits)
    min_tokens = _min_tokens(message, max_tokens, end_ids=stop_ids | eos_ids, model=model)
    stop = None
    if message.stop:
        stop = StopStrings(
            message.stop,
            tokenizer,
            include=message.include_stop_in_output,
            min_tokens=min_tokens,
            skip_special_tokens=skips_special_tokens(message),
        )
    return Request(
        prompt=prompt,
        sampling=sampling,
        ending=Ending(max_tokens, eos_ids=eos_ids, stop_ids=stop_ids, min_tokens=min_tokens),
        emit=emit,
        stop=stop,
        grammar=grammar if calls is None else calls,
        n=n,
        beam=beam,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        priority=message.priority,
        deadline=deadline,
        start_token_id=model.start_token_id,
        request_id=request_id,
        is_open_ended=not message.HasField("max_tokens"),
        reports_progress=message.prompt_progress or message.chunk_usage,
    )


def skips_special_tokens(message: generation_pb2.GenerateRequest) -> bool:
    """Whether special tokens are left out of the output's text."""
    return message.skip_special_tokens or not message.HasField("skip_special_tokens")


def _beam(message: generation_pb2.GenerateRequest, limits: RequestLimits) -> BeamParameters | None:
    if not message.HasField("beam_search"):
        return None
    if message.HasField("n") and message.n != 1:
        raise RequestError("n", f"must be 1 or unset with beam_search, got {message.n}")
    for field, is_set in (("logprobs", message.HasField("logprobs")), ("stop", bool(message.stop))):
        if is_set:
            raise RequestError(field, "must be unset with beam_search")
    search = message.beam_search
    _check_range("beam_search.num_beams", search.num_beams, least=1, most=limits.max_beams)
    count = search.num_return_sequences if search.HasField("num_return_sequences") else 1
    _check_range("beam_search.num_return_sequences", count, least=1, most=search.num_beams)
    penalty = search.length_penalty if search.HasField("length_penalty") else 1.0
    _check_range("beam_search.length_penalty", penalty, least=-_MAX_LENGTH_PENALTY, most=_MAX_LENGTH_PENALTY)
    stop = search.stop if search.HasField("stop") else generation_pb2.BEAM_STOP_HEURISTIC
    if stop not in _EARLY_STOPPING:
        names = ", ".join(generation_pb2.BeamStop.Name(number) for number in sorted(_EARLY_STOPPING))
        raise RequestError("beam_search.stop", f"must be one of {names}, got {stop}")
    return BeamParameters(search.num_beams, penalty, _EARLY_STOPPING[stop], count, search.stream_best)


def _number_of_generations(
    message: generation_pb2.GenerateRequest, sampling: SamplingParameters, limits: RequestLimits
) -> int:
    n = message.n if message.HasField("n") else 1
    _check_range("n", n, least=1, most=limits.max_n)
    check_seed(sampling.seed, n)
    return n


def _alternatives(
    message: generation_pb2.GenerateRequest,
    name: Literal["logprobs", "prompt_logprobs"],
    *,
    model: Model,
    limits: RequestLimits,
) -> int | None:
    if not message.HasField(name):
        return None
    count: int = getattr(message, name)
    _check_range(name, count, least=0, most=min(limits.max_logprobs, model.vocab_size))
    return count


def _check_continues(message: generation_pb2.GenerateRequest, model: Model) -> None:
    """Refuses fields that need an output that continues the prompt, if the prompt is the input of an encoder."""
    if model.start_token_id is None:
        return
    for field, is_set in (("echo", message.echo), ("prompt_logprobs", message.HasField("prompt_logprobs"))):
        if is_set:
            problem = "must be unset with an encoder-decoder model, whose output does not continue the prompt"
            raise RequestError(field, problem)


def _forced_bos_token_id(message: generation_pb2.GenerateRequest, model: Model) -> int | None:
    name: Literal["forced_bos_token_id"] = "forced_bos_token_id"
    if message.HasField(name):
        if model.start_token_id is None:
            raise RequestError(name, "must be unset with a model that has no encoder")
        if message.forced_bos_token_id >= model.vocab_size:
            problem = f"must be 0 to {model.vocab_size - 1}, the vocabulary, got {message.forced_bos_token_id}"
            raise RequestError(name, problem)
        return message.forced_bos_token_id
    return model.forced_bos_token_id


def _stop_ids(message: generation_pb2.GenerateRequest, model: Model) -> frozenset[int]:
    if len(message.stop_token_ids) > model.vocab_size:
        problem = f"at most {model.vocab_size}, the vocabulary's size, got {len(message.stop_token_ids)}"
        raise RequestError("stop_token_ids", problem)
    prompts.check_token_ids(message.stop_token_ids, "stop_token_ids", model)
    return frozenset(message.stop_token_ids)


def _check_stop(message: generation_pb2.GenerateRequest, limits: RequestLimits) -> None:
    if len(message.stop) > limits.max_stop_strings:
        raise RequestError("stop", f"at most {limits.max_stop_strings}, got {len(message.stop)}")
    for position, text in enumerate(message.stop):
        if not text:
            raise RequestError(f"stop[{position}]", "must not be empty")
        if (num_bytes := len(text.encode())) > limits.max_stop_bytes:
            raise RequestError(f"stop[{position}]", f"at most {limits.max_stop_bytes} bytes, got {num_bytes}")


def _max_tokens(
    message: generation_pb2.GenerateRequest, prompt_tokens: int, kv_room: int, *, model: Model, limits: RequestLimits
) -> int:
    room = model.max_context - prompt_tokens
    limit = room if limits.max_tokens is None else limits.max_tokens
    if not message.HasField("max_tokens"):
        return max(min(room, kv_room, limit), 1)  # if there is no room for one, the engine says so
    if message.max_tokens < 1:
        raise RequestError("max_tokens", f"must be at least 1, got {message.max_tokens}")
    if message.max_tokens > room:
        raise ContextLengthError(
            "max_tokens",
            f"the context of {model.max_context} tokens leaves room for {room} after the prompt, "
            f"got {message.max_tokens}",
        )
    if message.max_tokens > limit:
        raise RequestError("max_tokens", f"at most {limit} are allowed here, got {message.max_tokens}")
    return message.max_tokens


def _min_tokens(
    message: generation_pb2.GenerateRequest, max_tokens: int, *, end_ids: frozenset[int], model: Model
) -> int:
    if not 0 <= message.min_tokens <= max_tokens:
        problem = f"must be 0 to {max_tokens}, the most tokens to generate, got {message.min_tokens}"
        raise RequestError("min_tokens", problem)
    if message.min_tokens and len(end_ids) == model.vocab_size:
        raise RequestError("min_tokens", "must be 0 if every token of the vocabulary ends the generation")
    return message.min_tokens


def _request_id(message: generation_pb2.GenerateRequest) -> str:
    if not message.HasField("request_id"):
        return secrets.token_hex(16)
    check_request_id(message.request_id)
    return message.request_id


def check_request_id(request_id: str, field: str = "request_id") -> None:
    """Checks that a request may have this id.

    Raises:
        RequestError: It may not.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        problem = f"must be 1 to 128 printable ASCII characters without spaces, got {reprlib.repr(request_id)}"
        raise RequestError(field, problem)


def _check_range(field: str, value: float, *, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN fails, too
        raise RequestError(field, f"must be {least} to {most}, got {show(value)}")
