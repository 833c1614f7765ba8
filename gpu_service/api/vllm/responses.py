"""From the service's messages to VllmEngine's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from smg_grpc_proto import vllm_engine_pb2

from fiddler.v1 import generation_pb2

_REASONS = {
    generation_pb2.FINISH_REASON_EOS: "stop",
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
}


class EngineResponses:
    """One call's messages. Generations are sent in chunks if the caller streams, and whole at their ends."""

    def __init__(self, *, streams: bool) -> None:
        self._streams = streams
        self._ids = defaultdict[int, list[int]](list)
        self._logprobs = defaultdict[int, vllm_engine_pb2.OutputLogProbs](vllm_engine_pb2.OutputLogProbs)
        self._of_prompt = vllm_engine_pb2.InputLogProbs()
        self._has_sent_prompt = False

    def of(self, response: generation_pb2.GenerateResponse) -> Iterator[vllm_engine_pb2.GenerateResponse]:
        """What is sent for a message."""
        match response.WhichOneof("event"):
            case "prompt":
                self._add_prompt(response.prompt)
            case "chunk":
                yield from self._chunk(response.chunk)
            case "complete":
                yield vllm_engine_pb2.GenerateResponse(complete=self._complete(response.complete))

    def _chunk(self, chunk: generation_pb2.Chunk) -> Iterator[vllm_engine_pb2.GenerateResponse]:
        self._ids[chunk.index] += chunk.token_ids
        logprobs = _logprobs(chunk.logprobs)
        self._logprobs[chunk.index].MergeFrom(logprobs)
        if not self._streams or not chunk.token_ids:
            return
        message = vllm_engine_pb2.GenerateStreamChunk(
            token_ids=chunk.token_ids,
            index=chunk.index,
            prompt_tokens=chunk.usage.prompt_tokens,
            completion_tokens=chunk.usage.completion_tokens,
            cached_tokens=chunk.usage.cached_prompt_tokens,
        )
        if chunk.logprobs:
            message.output_logprobs.CopyFrom(logprobs)
        if self._of_prompt.token_ids and not self._has_sent_prompt:
            message.input_logprobs.CopyFrom(self._of_prompt)
            self._has_sent_prompt = True
        yield vllm_engine_pb2.GenerateResponse(chunk=message)

    def _complete(self, complete: generation_pb2.Complete) -> vllm_engine_pb2.GenerateComplete:
        message = vllm_engine_pb2.GenerateComplete(
            output_ids=self._ids.pop(complete.index, []),
            finish_reason=_REASONS.get(complete.finish_reason, "abort"),
            prompt_tokens=complete.usage.prompt_tokens,
            completion_tokens=complete.usage.completion_tokens,
            cached_tokens=complete.usage.cached_prompt_tokens,
            index=complete.index,
        )
        if complete.HasField("stop"):
            message.matched_stop_str = complete.stop
        elif complete.HasField("stop_token_id"):
            message.matched_token_id = complete.stop_token_id
        logprobs = self._logprobs.pop(complete.index, None)
        if logprobs is not None and logprobs.token_ids:
            message.output_logprobs.CopyFrom(logprobs)
        if self._of_prompt.token_ids:
            message.input_logprobs.CopyFrom(self._of_prompt)
        return message

    def _add_prompt(self, prompt: generation_pb2.PromptLogprobs) -> None:
        for token in prompt.tokens:
            self._of_prompt.token_ids.append(token.token_id)
            value = self._of_prompt.token_logprobs.add()
            if token.HasField("logprob"):
                value.value = token.logprob
            self._of_prompt.top_logprobs.append(_top(token))


def _logprobs(tokens: Iterable[generation_pb2.TokenLogprobs]) -> vllm_engine_pb2.OutputLogProbs:
    found = vllm_engine_pb2.OutputLogProbs()
    for token in tokens:
        found.token_ids.append(token.token_id)
        found.token_logprobs.append(token.logprob)
        found.top_logprobs.append(_top(token))
    return found


def _top(token: generation_pb2.TokenLogprobs) -> vllm_engine_pb2.TopLogProbs:
    return vllm_engine_pb2.TopLogProbs(
        values=[each.logprob for each in token.top], token_ids=[each.token_id for each in token.top]
    )
