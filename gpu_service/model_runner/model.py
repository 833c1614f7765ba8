"""transformers' model without its experts: computes batches over rows of a cache."""

import itertools
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.convert.recipe import DenseFormat
from gpu_service.model_runner.attention.functions import AttentionFunctions
from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.connection import connect
from gpu_service.model_runner.context import context_limit, positions
from gpu_service.model_runner.decode_graphs import DecodeGraphs
from gpu_service.model_runner.dense import host
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.summary import DenseSummary
from gpu_service.model_runner.encoder_decoder import EncoderDecoder, num_layers
from gpu_service.model_runner.forward_input import Logits, Span, is_rectangle
from gpu_service.model_runner.forwards import Forward, RowByRow, Together, keeps_only_keys_and_values, masks_agree
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.loading import load, read_config
from gpu_service.model_runner.packed.attention import SpanAttention
from gpu_service.model_runner.packed.forward import Packed
from gpu_service.model_runner.rope import RowAngles, keep_frequencies
from gpu_service.model_runner.rope_angles import RopeAngles
from gpu_service.model_runner.state_cache import StateCache
from gpu_service.models.generation_config import forced_bos_token_of, read_generation_config, start_token_of
from gpu_service.models.registry import architecture_of
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.router import answers

_SCORE_COPIES = 5
"""Of the size of the scores, that transformers' eager attention holds at once: with the mask, joined with the sinks,
scaled, as probabilities, and without the sinks."""


class Model:
    """The dense part of a checkpoint on one device. A dispatcher computes the experts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dispatcher: Dispatcher,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_rows: int,
        max_context: int | None,
        dense_format: DenseFormat = "auto",
        uses_graphs: bool = False,
    ) -> None:
        """Loads the dense weights; reads no expert.

        Args:
            checkpoint: The model's files.
            dispatcher: Computes the experts.
            device: Where the dense part is computed.
            dtype: Of the dense weights.
            num_rows: Rows of the cache.
            max_context: Positions in each row; fewer if the model has fewer. None: as many as the model has.
            dense_format: What linear layers are kept in.
            uses_graphs: Whether a GPU's decode steps are CUDA graphs, if the model's code can be captured.

        Raises:
            ModelError: transformers has no such model, or tensors are missing or left over.
        """
        self.device = device
        self.dtype = dtype
        self.config = config = read_config(checkpoint.directory)
        self.generation_config = read_generation_config(checkpoint.directory, config)
        if device.type == "cuda":
            # it plans anew for every length of the context: tens of milliseconds for each token, and memory for each
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._module = load(checkpoint, config, dtype, DensePlan.resolve(dense_format, device)).to(device)
        self._module.requires_grad_(False)
        keep_frequencies(self._module, device)
        self.dense = DenseSummary.of(self._module)
        self._host = host.Host(self._module) if device.type == "cpu" else None
        self.text_config = config.get_text_config(decoder=True)
        self.vocab_size = int(self.text_config.vocab_size)
        self.context_limit = context_limit(self.text_config)
        """The positions that the model has; None if its configuration has no limit."""
        self.max_context: int = positions(self.context_limit, max_context)
        """The most tokens of a prompt and its continuation. May be lowered before anything is computed."""
        self.start_token_id = start_token_of(self.generation_config, config)
        """What a decoder's output begins with; None if the model has no encoder."""
        self.forced_bos_token_id = forced_bos_token_of(self.generation_config, config)
        """The first token of a decoder's output if a request gives none; None: the decoder chooses."""
        self._architecture = architecture_of(config.model_type)
        self.rope_angles = RopeAngles.of_config(self.text_config, recomputes=self._architecture.recomputes_for_angles)
        self.dispatcher = dispatcher
        self._packed: Packed | None = None
        self.why_not_packed: str | None = None
        """Why spans of several sequences cannot be computed in one forward; None: they can."""
        self._forward = self._build_forward(num_rows, uses_graphs=uses_graphs and device.type == "cuda")
        self.cache = self._forward.cache
        routers = connect(self._module, checkpoint, self._architecture, dispatcher)
        self.routers = {layer: each for layer, each in routers.items() if self._answers(each, checkpoint.layers[layer])}
        """The routers that can be asked for rows alone, by the index of their layer among the checkpoint's."""
        if self._packed is not None:
            self.why_not_packed = self._packed.why_not(dispatcher)
        self._non_finite: set[int] = set()
        # an index rather than a number: a slice of the rows is not contiguous, and its product copies the whole head
        self._kept = {
            Logits.NONE: torch.empty(0, dtype=torch.int64, device=device),
            Logits.LAST: torch.tensor([-1], device=device),
            Logits.ALL: 0,  # means all to transformers
        }

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a generation."""
        return frozenset(self.generation_config.eos_token_id)

    @property
    def num_experts_per_token(self) -> int:
        """Experts that each token uses in a MoE layer."""
        return self._architecture.num_experts_per_token(self.config)

    @property
    def score_bytes(self) -> int:
        """The most bytes of attention scores for each token of a step; 0 if the attention never holds them."""
        module: Any = self._module
        config = module.config.get_text_config(decoder=True)
        if config._attn_implementation != "eager":
            return 0
        return int(config.num_attention_heads) * self.max_context * _SCORE_COPIES * self.dtype.itemsize

    @property
    def uses_graphs(self) -> bool:
        """Whether decode steps are captured as CUDA graphs. No longer once one could not be, or gave other logits."""
        return isinstance(self._forward, DecodeGraphs) and self._forward.is_used

    @property
    def num_layers(self) -> int:
        """Layers of the decoder, and of the encoder if there is one."""
        return num_layers(self.config)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        *,
        first_row: int,
        wants: Logits,
        lengths: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Computes tokens of adjacent rows and stores their keys and values.

        Args:
            token_ids: [sequences, tokens] int64 on the CPU. More than one token only for one sequence.
            positions: [sequences, tokens] int64 on the CPU, ascending runs.
            first_row: The cache's row of the first sequence.
            wants: Which tokens' logits are computed.
            lengths: The tokens of each sequence as a whole, of which this may be a chunk: those of its prompt, or those
                up to a token that follows the prompt. None: the last position ends the prompt.

        Returns:
            [rows, vocab] float32: no rows, one for each sequence, or one for each token of the only one.

        Raises:
            ExpertServiceError: No backend can compute the experts.
        """
        lengths = (positions[:, -1] + 1).tolist() if lengths is None else lengths
        compute = partial(self._compute, token_ids, positions, lengths, first_row=first_row, wants=wants)
        return self._step(compute, token_ids.numel())

    def compute(self, spans: Sequence[Span]) -> torch.Tensor:
        """Computes spans of different sequences and stores their keys and values.

        Args:
            spans: One, or one token each of sequences in adjacent rows; if `packs_spans`, any.

        Returns:
            [rows, vocab] float32: each span's `num_logits`, in the order of the spans.

        Raises:
            ExpertServiceError: No backend can compute the experts.
        """
        if self._packed is not None and self.packs_spans and not is_rectangle(spans):
            compute = partial(self._compute_packed, self._packed, spans)
            return self._step(compute, sum(len(span.token_ids) for span in spans))
        token_ids = torch.tensor([list(span.token_ids) for span in spans])
        positions = torch.tensor([span.start for span in spans])[:, None] + torch.arange(token_ids.shape[1])
        lengths = [span.length for span in spans]
        return self.forward(token_ids, positions, first_row=spans[0].row, wants=spans[0].logits, lengths=lengths)

    @property
    def packs_spans(self) -> bool:
        """Whether spans of several sequences, of any lengths, are computed in one forward."""
        return self.why_not_packed is None

    def _step(self, compute: Callable[[], torch.Tensor], num_tokens: int) -> torch.Tensor:
        """Computes a batch, again with fewer experts on the device if that has no memory left."""
        began = time.monotonic()
        logits = self._forward.retried(partial(self._attempt, compute), self.dispatcher.make_room)
        self.dispatcher.end_of_step(num_tokens, time.monotonic() - began)
        return logits

    def take_non_finite(self) -> set[int]:
        """Returns the sequences or spans of the latest batch, from 0 on, whose experts gave non-finite sums.

        They are cleared. Their logits mean nothing.
        """
        sequences, self._non_finite = self._non_finite, set()
        return sequences

    def _answers(self, router: nn.Module, layer: CheckpointLayer) -> bool:
        return answers(router, torch.zeros(2, layer.hidden_size, dtype=self.dtype, device=self.device))

    def _build_forward(self, num_rows: int, *, uses_graphs: bool) -> Forward:
        """The forward that fits what the model's layers keep."""
        module, device, max_length = self._module, self.device, self.max_context
        config: Any = module.config
        if self.start_token_id is not None:
            states = StateCache(config, num_rows, max_length, is_made_by_model=True)
            self.why_not_packed = "it has an encoder"
            return EncoderDecoder(module, states, self.start_token_id, device=device)
        # not self.text_config: loading sets the attention's implementation in the module's own configuration
        text_config = config.get_text_config(decoder=True)
        is_eager = text_config._attn_implementation == "eager"
        functions = AttentionFunctions(module)
        attention = self._host.attention(functions, self.dtype) if self._host else None
        masks = AttentionMasks(text_config, next(module.parameters()).dtype, is_added=is_eager)
        if not keeps_only_keys_and_values(config) or not masks_agree(module, masks, max_length):
            own_class = not module._supports_default_dynamic_cache()  # type: ignore[operator]
            states = StateCache(config, num_rows, max_length, is_made_by_model=own_class)
            self.why_not_packed = "its layers keep more than keys and values, or have masks of their own"
            return RowByRow(module, states, device, self.rope_angles, attention)
        step = text_config.floor_scale if getattr(text_config, "attn_temperature_tuning", False) else None
        row_angles = RowAngles(module, self.rope_angles)
        together = Together(
            module,
            KvCache(num_rows, max_length, is_divisible=not getattr(module, "needs_whole_prompts", False)),
            masks=masks,
            device=device,
            row_angles=row_angles,
            host_attention=attention,
            temperature_step=step,
        )
        if step is not None:
            self.why_not_packed = "its attention has a temperature for each position"
        elif not together.cache.is_divisible:
            self.why_not_packed = "what it computes of a token depends on those after it"
        else:
            spans = SpanAttention(module, functions, attention)
            self._packed = Packed(module, together.cache, spans, masks=masks, row_angles=row_angles, device=device)
        if not uses_graphs or self.rope_angles.depend_on_length:
            return together
        return DecodeGraphs(
            together, module, masks=masks, dispatcher=self.dispatcher, device=device, temperature_step=step
        )

    def _attempt(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Computes a batch; if that fails, nothing of it stays demanded."""
        self._non_finite.clear()
        self.dispatcher.take_non_finite()  # a batch that failed may have left some
        try:
            return compute()
        except Exception:
            self.dispatcher.cancel_batch()
            raise

    def _compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int], *, first_row: int, wants: Logits
    ) -> torch.Tensor:
        num_tokens = token_ids.shape[1]
        num_kept = {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: num_tokens}[wants]
        parts: list[torch.Tensor] = []
        first_sequence = 0
        with self._threads_for(token_ids.numel()):
            for logits in self._forward.compute(
                token_ids, positions, lengths, first_row=first_row, kept=self._kept[wants]
            ):
                # hidden rows are counted within a part, sequences within the batch
                non_finite = self.dispatcher.take_non_finite()
                self._non_finite.update(first_sequence + row // num_tokens for row in non_finite)
                first_sequence += len(logits)
                # some families compute those of all tokens
                parts.append(logits[:, max(0, logits.shape[1] - num_kept) :])
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return logits.flatten(0, 1).to(torch.float32)

    def _compute_packed(self, packed: Packed, spans: Sequence[Span]) -> torch.Tensor:
        with self._threads_for(sum(len(span.token_ids) for span in spans)):
            logits = packed.compute(spans)
        ends = list(itertools.accumulate(len(span.token_ids) for span in spans))
        self._non_finite.update(bisect_right(ends, token) for token in self.dispatcher.take_non_finite())
        return logits.to(torch.float32)

    def _threads_for(self, num_tokens: int) -> AbstractContextManager[None]:
        """The threads that pay for a forward of so many tokens."""
        return self._host.threads_for(num_tokens) if self._host else nullcontext()
