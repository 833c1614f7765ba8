"""ExpertService over gRPC: parses messages, passes them to the runner, and answers. It computes nothing itself."""

import time
from collections.abc import Iterator

import grpc
import structlog
import torch

from cpu_expert_service import metrics
from cpu_expert_service.runner import ExpiredError, Runner
from cpu_expert_service.segments import Segments, UsedSegment, named
from cpu_expert_service.settings import Settings
from cpu_expert_service.streams import Streams
from fiddler import PROTOCOL_VERSION, __version__, rpc, tensors
from fiddler.calls.handshake import check_handshake
from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.kernels.segments.layout import Record
from fiddler.kernels.segments.service import ServiceEnd
from fiddler.transport import shared_memory
from fiddler.v1 import experts_pb2, experts_pb2_grpc

_log = structlog.get_logger(__name__)
_FEW_ROWS = 4  # of one expert; reading its weights then takes longer than computing, on every CPU
_MOST_ROWS_TO_COUNT = 64  # in a message; with more, some expert has more than a few
_ANSWERED = metrics.REQUESTS.labels(grpc.StatusCode.OK.name)


class ExpertServicer(experts_pb2_grpc.ExpertServiceServicer):
    """Serves one checkpoint's experts. Synchronous: a stream's thread computes its own messages."""

    def __init__(self, checkpoint: Checkpoint, runner: Runner, *, dtype: torch.dtype, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._runner = runner
        self._dtype = dtype
        self._settings = settings
        self._streams = Streams(settings.max_streams)
        self._segments: Segments | None = None

    def Describe(  # noqa: N802
        self, request: experts_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> experts_pb2.DescribeResponse:
        """Says what is served, and refuses a caller that expects something else."""
        description = self._describe()
        try:
            check_handshake(request, description)
        except rpc.StatusError as error:
            _log.error("handshake refused", reason=error.message)
            error.abort(context)
        return description

    def share_memory(self) -> None:
        """Offers segments of shared memory from now on, if there can be any. The weights must be where they stay."""
        native, num_bytes = self._runner.native(), self._settings.shared_memory_mib << 20
        directory = shared_memory.directory_for(self._settings.listen)
        if native is None or num_bytes == 0 or directory is None:
            return

        def prepare(end: ServiceEnd) -> None:
            end.compute(
                native,
                dtype=self._dtype,
                max_rows=self._settings.max_rows,
                max_experts_per_row=self._settings.max_experts_per_row,
                few_rows=_FEW_ROWS,
                most_rows_to_count=_MOST_ROWS_TO_COUNT,
            )

        self._segments = Segments(
            directory, num_bytes, count=self._settings.max_streams, dtype=self._dtype, prepare=prepare
        )

    @property
    def segments(self) -> Segments | None:
        """What shares memory with callers; None if nothing does."""
        return self._segments

    def OpenSegment(  # noqa: N802
        self, request: experts_pb2.OpenSegmentRequest, context: grpc.ServicerContext
    ) -> experts_pb2.OpenSegmentResponse:
        """Offers memory that a stream's caller may share."""
        if self._segments is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this service shares no memory")
        try:
            return self._segments.offer()
        except rpc.StatusError as error:
            error.abort(context)

    def Run(  # noqa: N802
        self, request_iterator: Iterator[experts_pb2.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[experts_pb2.RunResponse]:
        """Answers a stream's messages in order; the first wrong one ends the stream."""
        try:
            self._streams.enter(context)
        except rpc.StatusError as error:
            metrics.REQUESTS.labels(error.code.name).inc()
            error.abort(context)
        metrics.STREAMS.inc()
        request, segment = None, None
        try:
            segment = self._segment_of(context)
            while (request := self._streams.next(request_iterator, context)) is not None:
                response = self._answer(request)
                yield response
                self._count(request, response)  # after it was sent, so that it does not wait
        except rpc.StatusError as error:
            metrics.REQUESTS.labels(error.code.name).inc()
            _log.warning("stream ended", code=error.code.name, reason=error.message, **_named(request))
            error.abort(context)
        except Exception:
            # gRPC's reader raises here when the caller leaves or the stream gives way, which is not a failure
            if context.is_active():
                metrics.REQUESTS.labels(grpc.StatusCode.INTERNAL.name).inc()
                _log.exception("computation failed", **_named(request))
                context.abort(grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why")
        finally:
            if segment is not None:
                segment.stop()
            metrics.STREAMS.dec()
            self._streams.leave(context)

    def end_idle_streams(self) -> None:
        """Ends the streams that wait for a message at once, and every other one after its answer."""
        if self._segments is not None:
            self._segments.close()
        self._streams.end_idle()

    def _segment_of(self, context: grpc.ServicerContext) -> UsedSegment | None:
        """The segment that a stream's metadata names, which serves from now on; None if it names none.

        Raises:
            StatusError: It is not on offer.
        """
        identity = next((value for key, value in context.invocation_metadata() if key == shared_memory.METADATA), None)
        if identity is None:
            return None
        if self._segments is None:
            raise rpc.failed_precondition(shared_memory.METADATA, "this service shares no memory")

        def answer(request: experts_pb2.RunRequest) -> experts_pb2.RunResponse:
            self._streams.heard(context)
            return self._answer(request)

        def count(records: list[Record]) -> None:
            self._streams.heard(context)
            self._count_records(records)

        return self._segments.use(str(identity), answer, count)

    def _answer(self, request: experts_pb2.RunRequest) -> experts_pb2.RunResponse:
        deadline = None
        if request.HasField("time_remaining_seconds"):
            deadline = time.monotonic() + request.time_remaining_seconds
        hidden, expert_ids, routing_weights = self._parse(request)
        try:
            result = self._runner.run(
                request.layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights, deadline=deadline
            )
        except ExpiredError:
            raise rpc.StatusError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"message {request.sequence}: its time ran out before it was computed",
            ) from None
        response = experts_pb2.RunResponse(
            sequence=request.sequence,
            queue_seconds=result.queue_seconds,
            compute_seconds=result.compute_seconds,
        )
        tensors.encode(result.output, response.output)
        return response

    def _parse(self, request: experts_pb2.RunRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden rows, expert ids and routing weights.

        Raises:
            StatusError: A field is wrong; it names the field.
        """
        layers = self._checkpoint.layers
        if request.layer >= len(layers):
            raise rpc.invalid_argument("layer", f"must be 0 to {len(layers) - 1}, got {request.layer}")
        layer = layers[request.layer]
        try:
            hidden = tensors.decode(request.hidden, "hidden", dtype=self._dtype, shape=(None, layer.hidden_size))
            rows = hidden.shape[0]
            expert_ids = tensors.decode(request.expert_ids, "expert_ids", dtype=torch.int32, shape=(rows, None))
            routing_weights = tensors.decode(
                request.routing_weights, "routing_weights", dtype=torch.float32, shape=tuple(expert_ids.shape)
            )
        except tensors.TensorError as error:
            raise rpc.invalid_argument(error.field, error.problem) from None
        self._check_limits(layer, expert_ids)
        return hidden, expert_ids, routing_weights

    def _check_limits(self, layer: CheckpointLayer, expert_ids: torch.Tensor) -> None:
        rows, k = expert_ids.shape
        if rows > self._settings.max_rows:
            raise rpc.invalid_argument("hidden.shape", f"at most {self._settings.max_rows} rows, got {rows}")
        if k > self._settings.max_experts_per_row:
            raise rpc.invalid_argument(
                "expert_ids.shape", f"at most {self._settings.max_experts_per_row} experts per row, got {k}"
            )
        ids = expert_ids.numpy()
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < -1 or highest >= layer.num_experts:
            wrong = lowest if lowest < -1 else highest
            raise rpc.invalid_argument("expert_ids", f"must be -1 to {layer.num_experts - 1}, got {wrong}")

    def _count(self, request: experts_pb2.RunRequest, response: experts_pb2.RunResponse) -> None:
        num_rows, seconds = request.hidden.shape[0], response.compute_seconds
        _ANSWERED.inc()
        metrics.ROWS.inc(num_rows)
        metrics.CALL_ROWS.observe(num_rows)
        metrics.QUEUE_SECONDS.observe(response.queue_seconds)
        metrics.COMPUTE_SECONDS.observe(seconds)
        metrics.RECEIVED_BYTES.inc(request.ByteSize())
        metrics.SENT_BYTES.inc(response.ByteSize())
        if num_rows > _MOST_ROWS_TO_COUNT:
            return
        # plain Python: on a core that was just woken, one call of torch or numpy takes as long as all of this
        rows: dict[int, int] = {}
        for expert in memoryview(request.expert_ids.data).cast("i"):
            if expert >= 0:  # -1: computed elsewhere
                rows[expert] = rows.get(expert, 0) + 1
        if rows and max(rows.values()) <= _FEW_ROWS:
            metrics.WEIGHT_READ_BYTES.inc(len(rows) * self._runner.expert_bytes[request.layer])
            metrics.WEIGHT_READ_SECONDS.inc(seconds)

    def _count_records(self, records: list[Record]) -> None:
        """Counts messages that came through shared memory; their bytes are those of their tensors."""
        for record in records:
            _ANSWERED.inc()
            metrics.ROWS.inc(record.rows)
            metrics.CALL_ROWS.observe(record.rows)
            metrics.QUEUE_SECONDS.observe(record.queue_seconds)
            metrics.COMPUTE_SECONDS.observe(record.compute_seconds)
            hidden_bytes = record.rows * self._checkpoint.layers[record.layer].hidden_size * self._dtype.itemsize
            metrics.RECEIVED_BYTES.inc(hidden_bytes + 8 * record.rows * record.experts_per_row)
            metrics.SENT_BYTES.inc(hidden_bytes)
            if record.experts_read:
                metrics.WEIGHT_READ_BYTES.inc(record.experts_read * self._runner.expert_bytes[record.layer])
                metrics.WEIGHT_READ_SECONDS.inc(record.compute_seconds)

    def _describe(self) -> experts_pb2.DescribeResponse:
        return experts_pb2.DescribeResponse(
            protocol_version=PROTOCOL_VERSION,
            checkpoint_fingerprint=self._checkpoint.fingerprint,
            model_type=self._checkpoint.model_type,
            layers=[
                experts_pb2.MoeLayer(
                    name=layer.name,
                    decoder_layer=layer.decoder_layer,
                    num_experts=layer.num_experts,
                    hidden_size=layer.hidden_size,
                    intermediate_size=layer.intermediate_size,
                    activation=layer.activation.name,
                )
                for layer in self._checkpoint.layers
            ],
            dtype=tensors.PROTO_DTYPES[self._dtype],
            weight_dtype=tensors.PROTO_DTYPES[self._checkpoint.expert_dtype],
            limits=experts_pb2.Limits(
                max_rows=self._settings.max_rows,
                max_experts_per_row=self._settings.max_experts_per_row,
                max_message_bytes=self._settings.max_message_bytes,
                max_streams=self._settings.max_streams,
            ),
            kernel=self._runner.kernel.name,
            threads=self._runner.kernel.num_threads,
            version=__version__,
            weight_format=self._checkpoint.weight_format,
            shares_memory=self._segments is not None,
        )


def _named(request: experts_pb2.RunRequest | None) -> dict[str, list[str]]:
    return {} if request is None else named(list(request.request_ids))
