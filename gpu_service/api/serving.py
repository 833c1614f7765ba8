"""The model that is served, with everything that answering a request needs, and its description."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from fiddler import __version__, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.v1 import experts_pb2, generation_pb2
from gpu_service.engine.engine import Engine
from gpu_service.errors import QueueFullError
from gpu_service.model_runner.model import Model
from gpu_service.settings import RequestLimits
from gpu_service.text.answering.parser import REASONING_FIELDS, TOOL_FIELD
from gpu_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that is ready to answer requests."""

    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer
    engine: Engine
    experts: experts_pb2.DescribeResponse
    limits: RequestLimits
    max_slots: int
    max_waiting: int
    max_message_bytes: int
    ready_at: float
    """On the clock of time.monotonic()."""
    is_degraded: Callable[[], bool] = lambda: False
    """Whether the CPU expert service is lost, so that its experts are computed in this process."""

    def check_room(self, priority: int = 0, deadline: float | None = None) -> None:
        """Refuses a request before its prompt is encoded if the queue is known to be full, or too long for it.

        Args:
            priority: The request's.
            deadline: When its caller leaves, on the clock of time.monotonic(); None: never.

        Raises:
            QueueFullError: Too many requests wait.
        """
        self.engine.check_time(priority, deadline)
        # with a queue of length 0 only the engine knows whether a request would have to wait
        if 0 < self.max_waiting <= self.engine.num_waiting:
            raise QueueFullError(f"{self.engine.num_waiting} requests wait already")

    def describe_model(self) -> generation_pb2.GetModelInfoResponse:
        """The answer to GetModelInfo."""
        checkpoint, model = self.checkpoint, self.model
        fields = set((self.tokenizer.response_template or {}).get("fields", {}))
        return generation_pb2.GetModelInfoResponse(
            name=checkpoint.name,
            model_type=checkpoint.model_type,
            checkpoint_fingerprint=checkpoint.fingerprint,
            dtype=tensors.PROTO_DTYPES[model.dtype],
            vocab_size=model.vocab_size,
            max_context_tokens=model.max_context,
            eos_token_ids=sorted(model.eos_ids),
            num_layers=model.num_layers,
            num_moe_layers=len(checkpoint.layers),
            num_experts=max(layer.num_experts for layer in checkpoint.layers),
            num_experts_per_token=model.num_experts_per_token,
            dense_bytes=checkpoint.dense_bytes,
            dense_format=model.dense.format,
            dense_memory_bytes=model.dense.num_bytes,
            expert_bytes=checkpoint.expert_bytes,
            has_chat_template=self.tokenizer.has_chat_template,
            chat_templates=self.tokenizer.chat_templates.names,
            is_encoder_decoder=model.start_token_id is not None,
            has_response_parser=bool(fields),
            parses_reasoning=not fields.isdisjoint(REASONING_FIELDS),
            parses_tool_calls=TOOL_FIELD in fields,
            has_tool_template=self.tokenizer.has_tool_template,
            can_require_tool_calls=self.tokenizer.has_call_form and model.start_token_id is None,
        )

    def describe_server(self) -> generation_pb2.GetServerInfoResponse:
        """The answer to GetServerInfo: the server and its present load."""
        engine = self.engine
        return generation_pb2.GetServerInfoResponse(
            version=__version__,
            torch_version=torch.__version__,
            transformers_version=transformers.__version__,
            device=str(self.model.device),
            expert_kernel=self.experts.kernel,
            expert_version=self.experts.version,
            degraded=self.is_degraded(),
            max_slots=self.max_slots,
            used_slots=engine.used_rows,
            running_requests=engine.num_running,
            waiting_requests=engine.num_waiting,
            max_waiting=self.max_waiting,
            kv_bytes=engine.kv_bytes,
            used_kv_bytes=engine.used_kv_bytes,
            uptime_seconds=time.monotonic() - self.ready_at,
            limits=self._describe_limits(),
        )

    def _describe_limits(self) -> generation_pb2.RequestLimits:
        """The limits that a request really has: also the number of slots, and the room in the context."""
        limits, context = self.limits, self.model.max_context - 1
        return generation_pb2.RequestLimits(
            max_tokens=context if limits.max_tokens is None else min(limits.max_tokens, context),
            max_n=min(limits.max_n, self.max_slots),
            max_beams=min(limits.max_beams, self.max_slots),
            max_stop_strings=limits.max_stop_strings,
            max_stop_bytes=limits.max_stop_bytes,
            max_logprobs=limits.max_logprobs,
            max_constraint_bytes=limits.max_constraint_bytes,
            max_message_bytes=self.max_message_bytes,
        )
