"""VllmEngine over gRPC: each call is a call of GenerationService, in other words."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from fiddler import __version__
from fiddler.v1 import generation_pb2
from gpu_service.api.service import GenerationServicer
from gpu_service.api.statuses import status_of
from gpu_service.api.vllm.requests import request_of
from gpu_service.api.vllm.responses import EngineResponses
from gpu_service.errors import CallError

Context = grpc.aio.ServicerContext[Any, Any]
DESCRIPTOR: Final = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"]
add_to_server: Final = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server

_PIECE_BYTES = 1 << 20
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a router needs to encode prompts and decode answers."""


class VllmEngineServicer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc] # without types
    """The service's handlers. What is not here, such as embeddings, is UNIMPLEMENTED."""

    def __init__(self, own: GenerationServicer) -> None:
        """Answers with another servicer's answers, which has the errors of a generation as statuses."""
        self._generations = own.generations
        self._own = own

    async def Generate(  # noqa: N802
        self, request: vllm_engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
        """Streams one request's generations."""
        answer = EngineResponses(streams=request.stream)
        try:
            message = request_of(request)
        except CallError as error:
            await status_of(error).abort_async(context)
        message.chunk_usage = request.stream
        async with aclosing(self._own.Generate(message, context)) as responses:  # type: ignore[type-var]
            async for response in responses:
                for each in answer.of(response):
                    yield each

    async def Abort(  # noqa: N802
        self, request: vllm_engine_pb2.AbortRequest, context: Context
    ) -> vllm_engine_pb2.AbortResponse:
        """Ends generations that other calls stream."""
        if request.request_ids:
            await self._own.Abort(generation_pb2.AbortRequest(request_ids=request.request_ids), context)
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(  # noqa: N802
        self, request: vllm_engine_pb2.HealthCheckRequest, context: Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        """Whether generations are accepted."""
        reason = self._generations.unavailable
        return vllm_engine_pb2.HealthCheckResponse(healthy=not reason, message=reason or "OK")

    async def GetModelInfo(  # noqa: N802
        self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetModelInfoResponse:
        """Describes the model."""
        info = await self._own.GetModelInfo(generation_pb2.GetModelInfoRequest(), context)
        # without a path that a router could take for one of its own host: it asks GetTokenizer
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=info.name,
            served_model_name=info.name,
            is_generation=True,
            max_context_length=info.max_context_tokens,
            max_req_input_len=info.max_context_tokens - 1,
            vocab_size=info.vocab_size,
            model_type=info.model_type,
            eos_token_ids=info.eos_token_ids,
        )

    async def GetServerInfo(  # noqa: N802
        self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetServerInfoResponse:
        """Describes the server and its load."""
        info = await self._own.GetServerInfo(generation_pb2.GetServerInfoRequest(), context)
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=info.running_requests + info.waiting_requests,
            uptime_seconds=info.uptime_seconds,
            server_type="vllm-grpc",
            data_parallel_size=1,
            max_num_seqs=info.max_slots,
            constrained_decoding_start="first_token",
        )

    async def GetLoads(  # noqa: N802
        self, request: vllm_engine_pb2.GetLoadsRequest, context: Context
    ) -> vllm_engine_pb2.GetLoadsResponse:
        """How much the service has to do."""
        info = await self._own.GetServerInfo(generation_pb2.GetServerInfoRequest(), context)
        load = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=info.running_requests,
            num_waiting_reqs=info.waiting_requests,
            num_total_reqs=info.running_requests + info.waiting_requests,
            token_usage=info.used_kv_bytes / info.kv_bytes if info.kv_bytes else 0.0,
            utilization=info.used_slots / info.max_slots if info.max_slots else 0.0,
            max_running_requests=info.max_slots,
        )
        now = datetime.now(UTC).isoformat()
        return vllm_engine_pb2.GetLoadsResponse(timestamp=now, version=__version__, dp_rank_count=1, loads=[load])

    async def GetTokenizer(  # noqa: N802
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """The tokenizer's files as a zip archive, in pieces. The last has the archive's SHA-256."""
        try:
            directory = self._generations.ready().checkpoint.directory
        except CallError as error:
            await status_of(error).abort_async(context)
        archive = await asyncio.to_thread(_archive, directory)
        for start in range(0, len(archive), _PIECE_BYTES):
            piece = archive[start : start + _PIECE_BYTES]
            is_last = start + _PIECE_BYTES >= len(archive)
            yield common_pb2.GetTokenizerChunk(
                data=piece, sha256=hashlib.sha256(archive).hexdigest() if is_last else ""
            )


def _archive(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _FILES:
            if (directory / name).is_file():
                entry = zipfile.ZipInfo(name)  # without the time, so that equal files are equal archives
                archive.writestr(entry, (directory / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
