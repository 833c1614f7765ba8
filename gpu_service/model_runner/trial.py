"""Tries a model on tensors without values: builds it, loads it, and computes two tokens, before any weight is read.

PyTorch's fake tensors have shapes and dtypes and no memory. So the trial finds, in seconds and for a model of any size,
what a start would fail with: tensors that are missing, left over or of another shape, and settings that the model's own
code cannot compute with. It does not find what depends on values.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions as EncoderOutput

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner.connection import connect
from gpu_service.model_runner.dense.sizes import DenseSizes
from gpu_service.model_runner.forwards import keeps_only_keys_and_values
from gpu_service.model_runner.loading import load_state
from gpu_service.model_runner.reading.config_reads import blame_failure
from gpu_service.model_runner.reading.dense_state import LazyState
from gpu_service.model_runner.state_cache import tensors_of
from gpu_service.models.registry import architecture_of
from gpu_service.moe.dispatcher import Dispatcher

_UNKNOWN: Final = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,
)
"""What is raised where a value is asked for: then nothing is known of the model."""


class CacheSizes(NamedTuple):
    """Bytes of what a model keeps of a sequence."""

    token_bytes: int
    """Of each token's keys and values in all layers."""
    row_bytes: int
    """Of states that do not grow with the tokens."""


class Tried(NamedTuple):
    """What a trial tells of a model's memory."""

    cache: CacheSizes | None
    """What the model keeps of a sequence; None if that shows only with weights, or if the model has an encoder."""
    dense: DenseSizes
    """How large its dense part is."""


class _NoDispatcher:
    """Stands for a Dispatcher, and computes no expert."""

    max_rows = None
    capture = None

    def begin(self, layer: int, hidden: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(hidden=hidden)

    def finish(self, work: SimpleNamespace) -> torch.Tensor:
        return torch.empty_like(work.hidden)


class _Shape:
    """Stands for a tensor of the checkpoint, as `LazyTensor` does, and is loaded as a tensor on the meta device."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        self.ndim = len(shape)

    def __getitem__(self, index: Any) -> "_Shape":
        return self

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """On the meta device, whatever device is asked for."""
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def try_model(checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> Tried:
    """Raises what a start would raise that does not depend on weights.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        dtype: What the dense part is computed in.

    Returns:
        The sizes of what was tried.

    Raises:
        ModelError: The checkpoint cannot be run.
    """
    state = {name: _Shape(each.shape, each.dtype) for name, each in LazyState(checkpoint, dtype).items()}
    module = load_state(checkpoint, config, dtype, state)
    dense = DenseSizes.of(module, checkpoint)
    connect(module, checkpoint, architecture_of(config.model_type), cast("Dispatcher", _NoDispatcher()), alone=True)
    with _silent(), FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        _forget_values(module)
        try:
            _compute(module, config)
        except _UNKNOWN:
            return Tried(None, dense)
        except Exception as error:
            if _is_of_fake_tensors(error):
                return Tried(None, dense)
            text = " ".join(str(error).split())
            raise ModelError(
                f"{checkpoint.directory}: a token cannot be computed: {type(error).__name__}: {text}"
                f"{blame_failure(error, config)}"
            ) from error
        return Tried(_cache_sizes(module, config), dense)


def _is_of_fake_tensors(error: Exception) -> bool:
    """Whether the machinery of fake tensors could not do what a model asked for."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = None if trace is None else trace.tb_frame.f_globals.get("__name__")
    if isinstance(error, AssertionError):
        return raised_in == fake_tensor.__name__
    # a module that converts its weights while it computes, as routers of Switch Transformers do
    return isinstance(error, RuntimeError) and raised_in == torch.nn.modules.module.__name__ and "swap" in str(error)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps PyTorch from logging, with a traceback, what is reported as an error here."""
    logger = logging.getLogger(fake_tensor.__name__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _forget_values(module: nn.Module) -> None:
    """Replaces all tensors of a module by fake ones on the CPU. Called with the fake mode on."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                child._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _compute(module: nn.Module, config: Any) -> None:
    """Two tokens."""
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    if getattr(config, "is_encoder_decoder", False):
        encoded = cast("Any", module).get_encoder()(input_ids=tokens).last_hidden_state
        module(encoder_outputs=EncoderOutput(last_hidden_state=encoded), decoder_input_ids=tokens, use_cache=False)
    else:
        module(input_ids=tokens, position_ids=torch.arange(2)[None], use_cache=False)


def _cache_sizes(module: nn.Module, config: Any) -> CacheSizes | None:
    """What a model keeps of two tokens, one after the other."""
    if getattr(config, "is_encoder_decoder", False):
        return None
    cache = None
    held: list[int] = []
    try:
        for position in range(2):
            token = torch.zeros(1, 1, dtype=torch.int64)
            output = module(input_ids=token, position_ids=token + position, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            held.append(sum(tensor.nbytes for tensor in tensors_of(cache)))
    except Exception:  # some models compute a continuation from values
        return None
    grown = held[1] - held[0]
    return CacheSizes(grown, 0 if keeps_only_keys_and_values(config) else held[1]) if grown > 0 else None
