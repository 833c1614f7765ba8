"""From VllmEngine's requests to the service's own. An error names the field."""

from smg_grpc_proto import vllm_engine_pb2

from fiddler.v1 import generation_pb2
from gpu_service.errors import RequestError

_MOST_TOP_K = 2**31
"""vLLM's -1, all tokens, as an unsigned number."""
_SEEDS = 2**31
_WITH_MEDIA = ("mm_inputs", "extra_mm_inputs", "media_refs", "kv_transfer_params", "kv_transfer_params_json")


def request_of(request: vllm_engine_pb2.GenerateRequest) -> generation_pb2.GenerateRequest:
    """The same request. Numbers that are 0 where 0 means nothing are unset.

    Raises:
        RequestError: It asks for what the service does not have.
    """
    for descriptor, _ in request.ListFields():
        if descriptor.name in _WITH_MEDIA:
            raise RequestError(descriptor.name, "is not supported: the model takes text, and is served by one service")
    message = generation_pb2.GenerateRequest(request_id=request.request_id or None)
    if request.WhichOneof("input") == "tokenized":
        message.token_ids.ids.extend(request.tokenized.input_ids)
    elif request.WhichOneof("input") == "text":
        message.text = request.text
    params = request.sampling_params
    _set_sampling(message.sampling, params)
    _set_length(message, params)
    _set_constraint(message, params)
    return message


def _set_sampling(sampling: generation_pb2.SamplingParameters, params: vllm_engine_pb2.SamplingParams) -> None:
    if params.HasField("temperature"):
        sampling.temperature = params.temperature
    if params.HasField("seed"):
        sampling.seed = params.seed % _SEEDS
    sampling.top_k = params.top_k if params.top_k < _MOST_TOP_K else 0
    sampling.min_p = params.min_p
    sampling.frequency_penalty = params.frequency_penalty
    sampling.presence_penalty = params.presence_penalty
    if params.top_p:
        sampling.top_p = params.top_p
    if params.repetition_penalty:
        sampling.repetition_penalty = params.repetition_penalty
    for token_id, bias in params.logit_bias.items():
        if token_id < 0:
            raise RequestError(f"sampling_params.logit_bias[{token_id}]", "must be a token's id")
        sampling.logit_bias[token_id] = bias


def _set_length(message: generation_pb2.GenerateRequest, params: vllm_engine_pb2.SamplingParams) -> None:
    if params.HasField("max_tokens"):
        message.max_tokens = min(params.max_tokens, 2**31 - 1)
    message.min_tokens = min(params.min_tokens, 2**31 - 1)
    message.stop.extend(params.stop)
    message.stop_token_ids.extend(params.stop_token_ids)
    message.include_stop_in_output = params.include_stop_str_in_output
    message.ignore_eos = params.ignore_eos
    message.n = params.n or 1
    for name in ("logprobs", "prompt_logprobs"):
        if params.HasField(name):
            setattr(message, name, getattr(params, name))
    if params.HasField("truncate_prompt_tokens"):
        message.truncate_prompt = max(params.truncate_prompt_tokens, 0)


def _set_constraint(message: generation_pb2.GenerateRequest, params: vllm_engine_pb2.SamplingParams) -> None:
    kind = params.WhichOneof("constraint")
    if kind == "structural_tag":
        raise RequestError("sampling_params.structural_tag", "is not supported; use json_schema, regex or grammar")
    if kind == "choice":
        message.choice.texts.extend(params.choice.choices)
    elif kind is not None:
        setattr(message, kind, getattr(params, kind))
