"""A decoder layer up to its experts on the native kernels, in one call: for one token of each of several sequences.

Between two operations of PyTorch the weights of experts have passed through the caches, so that beginning each of them
takes 5 to 20 microseconds; a layer has about 40 of them.
"""

import ctypes
import weakref
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from fiddler.expert_math import Matrix
from fiddler.kernels import matrices, native
from fiddler.kernels.attention import Attention
from fiddler.kernels.linear import LinearKernel, describe
from fiddler.kernels.native import Product, check
from fiddler.kernels.routing import Routed, RouterKernel
from fiddler.kernels.segments.caller import Posting

_NO_SLOT: Final = -1


class _Norm(ctypes.Structure):
    """fiddler_norm of abi.h."""

    _fields_ = (("weight", c_void_p), ("size", c_int64), ("epsilon", c_float), ("rounds_first", c_int32))


class _Block(ctypes.Structure):
    """fiddler_attention_block of abi.h."""

    _fields_ = (
        *((name, Product) for name in ("query", "key", "value", "out")),
        *((name, _Norm) for name in ("before", "query_norm", "key_norm", "after")),
        ("attention", Attention),
        ("positions", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("turned", c_int64),
        ("angles", c_int64),
        ("hidden", c_void_p),
        ("residual", c_void_p),
        ("normed", c_void_p),
        ("router", c_void_p),
        ("logits", c_void_p),
        ("routing_weights", c_void_p),
        ("expert_ids", c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm; see norm.rms_norm."""

    weight: torch.Tensor
    """[size] bfloat16."""
    epsilon: float
    rounds_first: bool


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer."""

    weight: Matrix
    """[outputs, inputs]."""
    bias: torch.Tensor | None
    """[outputs], of any floating dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights:
    """What a layer has: its attention, and the norms before and after it."""

    before: Norm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    after: Norm
    query_norm: Norm | None
    """Of each head, or of all heads of a row together."""
    key_norm: Norm | None
    """Likewise."""
    sinks: torch.Tensor | None
    """[heads] float32: a score for each head that takes part in the softmax and has no value."""
    key_size: int
    """Values of a head of queries and of keys."""
    value_size: int
    shares_angles: bool = False
    """Whether both halves of what is turned have the same angles, which are then given once."""
    scale: float
    """Of the scores."""


class Computed(NamedTuple):
    """What a layer computes of its rows."""

    residual: torch.Tensor
    """The sum of hidden rows and attention, [rows, hidden] bfloat16."""
    normed: torch.Tensor
    """Its norm, likewise."""
    routed: Routed | None
    """What the router chooses for the latter; None without a router."""
    slot: int
    """Where the message to the experts was posted; negative: it was not."""


class Step:
    """What all layers of a decode step share: one token of each of several sequences, in adjacent rows of a cache."""

    def __init__(
        self,
        *,
        first_row: int,
        length: int,
        positions: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        visible: torch.Tensor | None,
    ) -> None:
        """Checks the tensors, all of them on the CPU.

        Args:
            first_row: The cache's row of the first sequence.
            length: The positions of the cache that are read, which are enough for every sequence.
            positions: [rows] int64, contiguous: where in its sequence each token is.
            angles: Cosines and sines [rows, n] bfloat16, contiguous: of the first n values of a head, or of 2 n if
                their halves have the same angles. The other values are not turned.
            visible: [rows, length] bool: the positions that each row sees. None: all.

        Raises:
            NativeError: The tensors do not fit.
        """
        rows, (cosines, sines) = len(positions), angles
        _check_rows("positions", positions, torch.int64, (rows,))
        for name, each in zip(("cosines", "sines"), angles, strict=True):
            _check_rows(name, each, torch.bfloat16, (rows, cosines.shape[-1]))
        if visible is not None and (
            visible.shape != (rows, length) or visible.dtype is not torch.bool or visible.stride(-1) != 1
        ):
            raise matrices.refusal("visible", f"bool [{rows}, {length}]", visible)
        self.rows, self.first_row, self.length = rows, first_row, length
        self.num_angles = int(cosines.shape[1])
        self.positions, self.cosines, self.sines = positions.data_ptr(), cosines.data_ptr(), sines.data_ptr()
        self.visible = None if visible is None else visible.data_ptr()
        self.visible_stride = 0 if visible is None else visible.stride(0)
        self._kept = positions, angles, visible


class AttentionBlock:
    """One layer on one tier of the native library, on the threads of a LinearKernel."""

    def __init__(self, kernel: LinearKernel, weights: BlockWeights, router: RouterKernel | None = None) -> None:
        """Describes the layer to the library. The tensors are kept alive.

        Args:
            kernel: Its threads compute.
            weights: All on the CPU.
            router: Chooses the layer's experts in the same call; None: nothing does.

        Raises:
            NativeError: It cannot be computed; the text says why.
        """
        self._kernel = kernel
        self._tier = native.tiers().index(kernel.tier)
        self._compute, self._compute_and_post = (
            native.load().fiddler_attend_block,
            native.load().fiddler_attend_and_post,
        )
        self._block = block = _Block()
        self._reference = byref(block)
        self._kept: list[object] = [weights]
        for name in ("query", "key", "value", "out"):
            linear: Linear = getattr(weights, name)
            product = describe(linear.weight, linear.bias)
            self._kept.append(product)
            setattr(block, name, product)  # copies the structure, not what its pointers refer to
        self._hidden_size = int(block.query.inputs)
        for name in ("before", "after", "query_norm", "key_norm"):
            self._set_norm(name, getattr(weights, name))
        self._angles_share = 2 if weights.shares_angles else 1
        attention = self._attention = block.attention
        attention.key_size, attention.value_size = weights.key_size, weights.value_size
        attention.heads = block.query.outputs // weights.key_size
        attention.kv_heads = block.key.outputs // weights.key_size
        attention.scale, attention.dtype = weights.scale, matrices.dtype_numbers()[torch.bfloat16]
        if weights.sinks is not None:
            if weights.sinks.shape != (attention.heads,) or weights.sinks.dtype is not torch.float32:
                raise matrices.refusal("sinks", f"float32 [{attention.heads}]", weights.sinks)
            attention.sinks = weights.sinks.data_ptr()
        self._router = router
        if router is not None:
            block.router = router.address
        self._slot = c_int32()
        self._slot_reference = byref(self._slot)
        self._memory: tuple[weakref.ref[torch.Tensor], weakref.ref[torch.Tensor]] | None = None

    def compute(
        self,
        hidden: torch.Tensor,
        step: Step,
        *,
        keys: torch.Tensor,
        values: torch.Tensor,
        posting: Posting | None = None,
    ) -> Computed:
        """Computes one token of each of several sequences, and stores its keys and values.

        Args:
            hidden: [rows, hidden] bfloat16, contiguous, as all of these are on the CPU.
            step: What it has in common with the other layers.
            keys: [cache's rows, kv_heads, positions, key_size] bfloat16, whose memory is written at the step's
                positions.
            values: [cache's rows, kv_heads, positions, value_size], likewise.
            posting: The message to the experts, which is posted once it is known what they are; None: it is not. For a
                block with a router.

        Raises:
            NativeError: The tensors do not fit; nothing is posted.
        """
        block, attention, rows = self._block, self._attention, step.rows
        _check_rows("hidden", hidden, torch.bfloat16, (rows, self._hidden_size))
        residual, normed = torch.empty_like(hidden), torch.empty_like(hidden)
        routed = None if self._router is None else self._router.room(rows)
        with self._kernel.lock:
            if keys.dim() != 4 or step.first_row + rows > len(keys) or step.length > keys.shape[2]:
                raise matrices.refusal("keys", f"{step.first_row + rows} rows of {step.length} positions", keys)
            if self._memory is None or self._memory[0]() is not keys or self._memory[1]() is not values:
                self._set_memory(keys, values)
            attention.rows, attention.length = rows, step.length
            attention.keys = keys.data_ptr() + 2 * step.first_row * attention.key_row_stride
            attention.values = values.data_ptr() + 2 * step.first_row * attention.value_row_stride
            attention.visible, attention.visible_stride = step.visible, step.visible_stride
            block.positions, block.cosines, block.sines = step.positions, step.cosines, step.sines
            block.angles, block.turned = step.num_angles, step.num_angles * self._angles_share
            block.hidden, block.residual, block.normed = hidden.data_ptr(), residual.data_ptr(), normed.data_ptr()
            if routed is not None:
                block.logits, block.routing_weights, block.expert_ids = [each.data_ptr() for each in routed]
            pool = self._kernel.pool.handle
            if posting is None:
                check(self._compute(pool, self._tier, self._reference))
                return Computed(residual, normed, routed, _NO_SLOT)
            check(
                self._compute_and_post(
                    pool, self._tier, self._reference, posting.segment, posting.request, self._slot_reference
                )
            )
            return Computed(residual, normed, routed, self._slot.value)

    def _set_norm(self, name: str, norm: Norm | None) -> None:
        if norm is None:
            return
        weight = norm.weight
        if weight.dim() != 1 or weight.dtype is not torch.bfloat16 or not weight.is_contiguous():
            raise matrices.refusal(name, "contiguous bfloat16 [size]", weight)
        setattr(self._block, name, _Norm(weight.data_ptr(), len(weight), norm.epsilon, norm.rounds_first))

    def _set_memory(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Describes the cache's memory, which is the same in most steps."""
        attention = self._attention
        for name, each, size in (("keys", keys, attention.key_size), ("values", values, attention.value_size)):
            shape = len(keys), attention.kv_heads, keys.shape[2], size
            if each.shape != shape or each.dtype is not torch.bfloat16 or each.stride(-1) != 1 or not each.is_cpu:
                raise matrices.refusal(name, f"bfloat16 {list(shape)}, the last dimension contiguous", each)
        attention.key_row_stride, attention.key_head_stride, attention.key_stride, _ = keys.stride()
        attention.value_row_stride, attention.value_head_stride, attention.value_stride, _ = values.stride()
        self._memory = weakref.ref(keys), weakref.ref(values)


def _check_rows(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_contiguous() or not tensor.is_cpu:
        raise matrices.refusal(name, f"contiguous {str(dtype).removeprefix('torch.')} {list(shape)}", tensor)
