"""GenerationService: checks requests, hands them to the engine, and streams what it makes. It computes nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import structlog
import torch
import transformers

from fiddler import __version__, rpc, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.v1 import experts_pb2, generation_pb2, generation_pb2_grpc
from gpu_service import metrics
from gpu_service.engine import Engine, EngineStoppedError
from gpu_service.event_queue import EventQueue, SlowReaderError
from gpu_service.expert_client import ExpertServiceError
from gpu_service.model import Model
from gpu_service.request import Failed, Finished, FinishReason, Request, Token
from gpu_service.scheduler import QueueFullError
from gpu_service.tokenizer import Detokenizer, Tokenizer
from gpu_service.validation import parse_request

_log = structlog.get_logger(__name__)

_MAX_UNREAD_EVENTS = 1024
_FINISH_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
}

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that answers requests, once it is there."""

    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer
    engine: Engine
    experts: experts_pb2.DescribeResponse
    max_slots: int
    ready_at: float
    """time.monotonic()"""


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers UNAVAILABLE until `loaded` is set, and while `unavailable` says why not."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.unavailable = "the service is starting"

    async def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams one generation."""
        loaded = await self._loaded(context)
        if self.unavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.unavailable)
        events = EventQueue(_MAX_UNREAD_EVENTS, lambda: loaded.engine.cancel(generation))
        try:
            # in a thread, since a long text takes long to encode
            generation = await asyncio.to_thread(parse_request, request, loaded.model, loaded.tokenizer, events.put)
        except rpc.StatusError as error:
            metrics.REQUESTS.labels("error").inc()
            await error.abort_async(context)
        metrics.PROMPT_TOKENS.inc(len(generation.prompt))
        loaded.engine.submit(generation)
        finish_reason = FinishReason.CANCELLED.value
        try:
            async for response in _responses(generation, events, Detokenizer(loaded.tokenizer)):
                if response.HasField("complete"):
                    finish_reason = _reason_name(response.complete.finish_reason)
                yield response
        except rpc.StatusError as error:
            finish_reason = "error"
            await error.abort_async(context)
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                finish_reason = FinishReason.DEADLINE.value
            raise
        finally:
            metrics.REQUESTS.labels(finish_reason).inc()
            loaded.engine.cancel(generation)
            _log.info(
                "request ended",
                request=generation.number,
                finish_reason=finish_reason,
                prompt_tokens=len(generation.prompt),
                completion_tokens=len(generation.output),
            )

    async def GetModelInfo(  # noqa: N802
        self, request: generation_pb2.GetModelInfoRequest, context: Context
    ) -> generation_pb2.GetModelInfoResponse:
        """Tells about the model."""
        loaded = await self._loaded(context)
        checkpoint, model = loaded.checkpoint, loaded.model
        return generation_pb2.GetModelInfoResponse(
            name=checkpoint.directory.resolve().name,
            model_type=checkpoint.model_type,
            checkpoint_fingerprint=checkpoint.fingerprint,
            dtype=tensors.PROTO_DTYPES[model.dtype],
            vocab_size=model.vocab_size,
            max_context_tokens=model.max_context,
            eos_token_ids=sorted(model.eos_ids),
            num_layers=model.text_config.num_hidden_layers,
            num_moe_layers=len(checkpoint.layers),
            num_experts=max(layer.num_experts for layer in checkpoint.layers),
            num_experts_per_token=model.num_experts_per_token,
            dense_bytes=checkpoint.dense_bytes,
            expert_bytes=checkpoint.expert_bytes,
        )

    async def GetServerInfo(  # noqa: N802
        self, request: generation_pb2.GetServerInfoRequest, context: Context
    ) -> generation_pb2.GetServerInfoResponse:
        """Tells about the server."""
        loaded = await self._loaded(context)
        return generation_pb2.GetServerInfoResponse(
            version=__version__,
            torch_version=torch.__version__,
            transformers_version=transformers.__version__,
            device=str(loaded.model.device),
            expert_kernel=loaded.experts.kernel,
            max_slots=loaded.max_slots,
            running_requests=loaded.engine.num_running,
            waiting_requests=loaded.engine.num_waiting,
            uptime_seconds=time.monotonic() - loaded.ready_at,
        )

    async def _loaded(self, context: Context) -> Loaded:
        if self.loaded is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.unavailable)
        return self.loaded


async def _responses(
    generation: Request, events: EventQueue, detokenizer: Detokenizer
) -> AsyncIterator[generation_pb2.GenerateResponse]:
    """Turns events into messages: tokens that came together share one."""
    while True:
        token_ids: list[int] = []
        end: Finished | Failed | None = None
        for event in await events.get():
            if isinstance(event, Token):
                token_ids.append(event.token_id)
            else:
                end = event
        text = detokenizer.add(token_ids)
        if end is not None:
            text += detokenizer.finish()
        if token_ids or text:
            yield generation_pb2.GenerateResponse(chunk=generation_pb2.Chunk(index=0, token_ids=token_ids, text=text))
        if isinstance(end, Failed):
            raise _status(end.error)
        if isinstance(end, Finished):
            yield generation_pb2.GenerateResponse(complete=_complete(generation, end))
            return


def _complete(generation: Request, end: Finished) -> generation_pb2.Complete:
    return generation_pb2.Complete(
        index=0,
        finish_reason=_FINISH_REASONS[end.reason],
        usage=generation_pb2.Usage(prompt_tokens=len(generation.prompt), completion_tokens=end.completion_tokens),
        timings=generation_pb2.Timings(
            queue_seconds=end.queue_seconds,
            prefill_seconds=end.prefill_seconds,
            decode_seconds=end.decode_seconds,
        ),
    )


def _status(error: Exception) -> rpc.StatusError:
    """The status that a failed generation ends with."""
    if isinstance(error, QueueFullError | SlowReaderError):
        return rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, ExpertServiceError | EngineStoppedError):
        return rpc.StatusError(grpc.StatusCode.UNAVAILABLE, str(error))
    return rpc.StatusError(grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why")


def _reason_name(number: generation_pb2.FinishReason.ValueType) -> str:
    return next(reason.value for reason, known in _FINISH_REASONS.items() if known == number)
