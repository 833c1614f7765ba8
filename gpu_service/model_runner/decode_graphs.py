"""Decode steps as CUDA graphs: what the host launches of a step is captured once and replayed, but for the experts.

The graphs of a step end where a layer's experts begin, since what they compute is planned anew for each token. Between
two of them the rows go to the dispatcher and their sums come back, through tensors that stay where they are. A step is
captured for each number of rows up to MAX_ROWS and for lengths of the context that double, so that the mask hides what
a row does not have. Everything else, and what cannot be captured, is computed as before.

A captured step is computed as before at its first replay, too: if the two differ by more than rounding, graphs are left
out from then on.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
import torch
from torch import nn
from typing_extensions import override

from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.forwards import Forward, Together
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.pending import Capture, Rehearsal, Routed

MAX_ROWS = 8
_LEAST_LENGTH = 64
_MOST_STEPS = 32
"""Captured steps that are kept; each holds a few megabytes."""
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of replayed logits, by the dtype of the dense part: the length of their difference over their own.

Attention over a longer, masked context rounds otherwise, and a router that rounds otherwise may choose another expert.
What reads or writes the wrong memory gives other logits altogether.
"""
_log = structlog.get_logger("gpu_service")


@dataclass
class _Piece:
    """What is computed up to a layer's experts, and what these are given and give back."""

    graph: Any
    layer: int = -1
    """-1: no experts follow, the step ends."""
    rows: Routed | None = None
    """Hidden rows, expert ids and routing weights, which each replay writes."""
    meanwhile: Any = None
    """The graph of what is computed while the experts are; None: nothing is."""
    sums: torch.Tensor | None = None
    """[rows, hidden]: what the experts give, which the next piece reads."""


@dataclass
class _Step:
    """A captured step."""

    inputs: torch.Tensor
    """[2, rows, 1] int64: token ids and positions."""
    pieces: list[_Piece] = field(default_factory=list)
    logits: torch.Tensor | None = None
    is_checked: bool = False
    """Whether a replay was compared with what is computed without graphs."""


_Key = tuple[int, int, int, int]
"""Rows, length, and how the cache is divided."""


class DecodeGraphs(Forward):
    """A Together whose decode steps are replayed. For the engine's thread."""

    cache: KvCache
    is_repeatable = True

    def __init__(
        self,
        inner: Together,
        module: nn.Module,
        *,
        masks: AttentionMasks,
        dispatcher: Dispatcher,
        device: torch.device,
        temperature_step: int | None = None,
    ) -> None:
        """Captures nothing yet.

        Args:
            inner: Computes all other batches.
            module: transformers' model.
            masks: Makes the model's masks.
            dispatcher: Computes the experts.
            device: A CUDA device.
            temperature_step: See Together. Rows of different temperatures are not replayed.
        """
        self.cache = inner.cache
        self._temperature_step = temperature_step
        self._tolerance = _TOLERANCES[next(module.parameters()).dtype]
        self._inner = inner
        self._module = module
        self._masks = masks
        self._dispatcher = dispatcher
        self._device = device
        self._uploads = Uploads(device)
        self._steps: OrderedDict[_Key, _Step | None] = OrderedDict()  # None: computed once, or cannot be captured
        self._memory_version = inner.cache.memory_version
        self._has_failed = False
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def is_used(self) -> bool:
        """Whether steps are captured. No longer once one could not be, or gave other logits."""
        return not self._has_failed

    @override
    def compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, kept: Any
    ) -> Iterator[torch.Tensor]:
        step = None
        is_decode = token_ids.shape[1] == 1 and isinstance(kept, torch.Tensor) and kept.numel() == 1
        if is_decode and len(token_ids) <= MAX_ROWS and first_row == 0 and not self._has_failed:
            step = self._step_for(positions, kept)
        if step is not None and step.is_checked:
            yield self._replay(step, token_ids, positions)
            return
        replayed = None if step is None else self._replay(step, token_ids, positions)
        # after the replay, so that what remains in the cache is computed without graphs, as the logits are
        for logits in self._inner.compute(token_ids, positions, lengths, first_row=first_row, kept=kept):
            if step is not None and replayed is not None:
                self._check(step, replayed, logits)
            yield logits

    def _check(self, step: _Step, replayed: torch.Tensor, expected: torch.Tensor) -> None:
        """Leaves graphs out from now on if a step gives other logits when it is replayed."""
        norm = float(expected.double().norm())
        if not math.isfinite(norm):  # says nothing about graphs; the next step is compared
            return
        difference = float((replayed - expected).double().norm()) / max(norm, 1e-9)
        step.is_checked = difference <= self._tolerance  # not if it is NaN
        if not step.is_checked:
            self._leave_out(f"replayed logits differ by {difference:.3g} of their length")

    def _leave_out(self, reason: str) -> None:
        self._has_failed = True
        self._steps.clear()
        _log.warning("decode is not captured as CUDA graphs", reason=reason)

    def _step_for(self, positions: torch.Tensor, kept: Any) -> _Step | None:
        """The step to replay; None if this one is to be computed as it is: the first of its kind, as a warm-up."""
        rows, length = len(positions), int(positions.max()) + 1
        if (step := self._temperature_step) is not None and len(set(((positions[:, 0] + 1) // step).tolist())) > 1:
            return None
        cache = self.cache
        if self._memory_version != cache.memory_version:
            self._steps.clear()  # they read memory that is given back
            self._memory_version = cache.memory_version
        padded = min(cache.max_length, max(_LEAST_LENGTH, 1 << (length - 1).bit_length()))
        key = rows, padded, cache.num_rows, cache.max_length
        if length > cache.max_length or rows > cache.num_rows:
            return None
        if key not in self._steps:
            self._steps[key] = None
            return None
        if self._steps[key] is None:
            self._steps[key] = self._captured(positions, padded, kept)
        self._steps.move_to_end(key)
        while len(self._steps) > _MOST_STEPS:
            self._steps.popitem(last=False)
        return self._steps[key]

    def _replay(self, step: _Step, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        (inputs,) = self._uploads.to_device(torch.stack([token_ids, positions]))
        step.inputs.copy_(inputs)
        for piece in step.pieces:
            piece.graph.replay()
            if piece.rows is not None and piece.sums is not None:
                hidden, ids, weights = piece.rows
                work = self._dispatcher.begin(piece.layer, hidden, expert_ids=ids, routing_weights=weights)
                if piece.meanwhile is not None:
                    piece.meanwhile.replay()
                piece.sums.copy_(self._dispatcher.finish(work))
        assert step.logits is not None
        return step.logits.clone()  # the next replay overwrites them

    def _captured(self, positions: torch.Tensor, length: int, kept: Any) -> _Step | None:
        """Captures a step; None if the model's code cannot be captured, which is then not tried again.

        It is rehearsed at the positions of the batch that is about to be computed, which replaces what that leaves in
        the cache.
        """
        (positions,) = self._uploads.to_device(positions)
        step = _Step(torch.stack([torch.zeros_like(positions), positions]))
        capture = _Capture(step, self._pool)
        torch.cuda.synchronize(self._device)
        try:
            with torch.cuda.stream(self._stream):
                self._run(Rehearsal(), step, length, kept)
                torch.cuda.synchronize(self._device)
                capture.begin_piece()
                try:
                    step.logits = self._run(capture, step, length, kept)
                finally:
                    capture.end()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a wait for the device, or whatever a family's code does on the host
            self._leave_out(str(error).splitlines()[0])
            return None
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return step

    def _run(self, capture: Capture, step: _Step, length: int, kept: Any) -> Any:
        """The model's code over a step's inputs: logits [rows, 1, vocab]."""
        token_ids, positions = step.inputs[0], step.inputs[1]
        self._dispatcher.capture = capture
        try:
            self.cache.begin_captured(positions, length, start_is_read=self._temperature_step is not None)
            return self._module(
                input_ids=token_ids,
                position_ids=positions,
                attention_mask=self._masks.of(positions, length),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=kept,
            ).logits
        finally:
            self._dispatcher.capture = None


class _Capture(Capture):
    """Divides a step into graphs while it is captured."""

    def __init__(self, step: _Step, pool: Any) -> None:
        self._step = step
        self._pool = pool
        self._graph: Any = None

    def begin_piece(self) -> None:
        """Begins a graph."""
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the copier's thread works meanwhile
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> None:
        """Ends the last piece, also of a step that failed."""
        graph, self._graph = self._graph, None
        if graph is not None:
            with suppress(RuntimeError):  # a capture that has failed says so a second time
                graph.capture_end()
            self._step.pieces.append(_Piece(graph))

    @override
    def experts(self, layer: int, rows: Routed, meanwhile: Callable[[], None] | None) -> torch.Tensor:
        if meanwhile is not None:
            wait = self.begin(layer, rows)
            meanwhile()
            return wait()
        piece = self._end_piece(layer, rows)
        return self._end_experts(piece)

    @override
    def begin(self, layer: int, rows: Routed) -> Callable[[], torch.Tensor]:
        piece = self._end_piece(layer, rows)
        self.begin_piece()
        return partial(self._end_meanwhile, piece)

    def _end_piece(self, layer: int, rows: Routed) -> _Piece:
        """Ends a piece before a layer's experts."""
        piece = _Piece(self._graph, layer, rows)
        self._graph.capture_end()
        self._graph = None
        piece.sums = torch.empty_like(rows[0])  # not captured: no replay gives its memory to anything else
        return piece

    def _end_meanwhile(self, piece: _Piece) -> torch.Tensor:
        piece.meanwhile, self._graph = self._graph, None
        piece.meanwhile.capture_end()
        return self._end_experts(piece)

    def _end_experts(self, piece: _Piece) -> torch.Tensor:
        """Begins the next piece. Returns where the experts' sums will be."""
        assert piece.sums is not None
        self._step.pieces.append(piece)
        self.begin_piece()
        return piece.sums
