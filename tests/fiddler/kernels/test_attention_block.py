"""A decoder layer up to its experts in one call, by every tier: held against the same steps in float64."""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fiddler.kernels.attention_block import AttentionBlock, BlockWeights, Computed, Linear, Norm, Step
from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError, Pool, available_tiers
from fiddler.kernels.routing import RouterKernel, RouterWeights, Scoring
from fiddler.kernels.segments.caller import Posting
from fiddler.kernels.segments.layout import RequestHeader

ROUNDING = 2.0**-8
EPSILON = 1e-5
LENGTH = 9


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    heads: int
    kv_heads: int
    size: int
    has_norms: bool = False
    has_biases: bool = False
    has_sinks: bool = False
    rounds_first: bool = True
    has_half_angles: bool = False
    turned: int = 0  # 0: all
    norms_heads_together: bool = False


SHAPES = {
    "mixtral": Shape(256, 8, 2, 32),
    "qwen3": Shape(128, 8, 2, 64, has_norms=True),
    "gpt_oss": Shape(192, 4, 4, 16, has_biases=True, has_sinks=True, rounds_first=False, has_half_angles=True),
    "glm4_moe": Shape(128, 4, 2, 32, has_norms=True, has_biases=True, turned=16),
    "minimax_m2": Shape(128, 4, 2, 32, has_norms=True, norms_heads_together=True, turned=24),
    "no vector's multiple": Shape(54, 3, 1, 18, has_norms=True, has_biases=True),
}


@pytest.fixture(scope="module", params=available_tiers())
def kernel(request: pytest.FixtureRequest) -> Iterator[LinearKernel]:
    pool = Pool([0, 1][: max(1, torch.get_num_threads())])
    yield LinearKernel(pool, request.param)
    pool.close()


class Layer:
    """Random weights and a cache, and what is due."""

    def __init__(self, shape: Shape, rows: int) -> None:
        self.shape, self.rows = shape, rows
        self._generator = torch.Generator().manual_seed(7)
        norm = shape.hidden**-0.5
        self.weights = BlockWeights(
            before=self._norm(shape.hidden),
            query=self._linear(shape.heads * shape.size, shape.hidden, norm),
            key=self._linear(shape.kv_heads * shape.size, shape.hidden, norm),
            value=self._linear(shape.kv_heads * shape.size, shape.hidden, norm),
            out=self._linear(shape.hidden, shape.heads * shape.size, norm),
            after=self._norm(shape.hidden),
            query_norm=self._norm_of(shape.heads),
            key_norm=self._norm_of(shape.kv_heads),
            sinks=self._random(shape.heads).float() if shape.has_sinks else None,
            key_size=shape.size,
            value_size=shape.size,
            scale=shape.size**-0.5,
            shares_angles=shape.has_half_angles,
        )
        self.turned = shape.turned or shape.size
        self.hidden = self._random(rows, shape.hidden)
        self.positions = torch.tensor([4, LENGTH - 1, 0, 6][:rows])
        turns = torch.rand(rows, self.turned // (2 if shape.has_half_angles else 1), generator=self._generator) * 6
        self.angles = turns.cos().bfloat16(), turns.sin().bfloat16()
        # more rows and positions than the step has
        self.keys, self.values = (self._random(rows + 2, shape.kv_heads, LENGTH + 2, shape.size) for _ in range(2))
        self.visible = torch.arange(LENGTH) <= self.positions[:, None]

    def step(self, **changes: Any) -> Step:
        given: dict[str, Any] = {"positions": self.positions, "visible": self.visible}
        return Step(first_row=1, length=LENGTH, angles=self.angles, **(given | changes))

    def compute(self, kernel: LinearKernel, *, router: RouterKernel | None = None, **changes: Any) -> Computed:
        hidden, keys, values = (changes.pop(name, getattr(self, name)) for name in ("hidden", "keys", "values"))
        block, posting = AttentionBlock(kernel, self.weights, router), changes.pop("posting", None)
        return block.compute(hidden, self.step(**changes), keys=keys, values=values, posting=posting)

    def due(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum with hidden rows, its norm, and the new keys and values [rows, kv_heads, size]."""
        shape, weights = self.shape, self.weights
        rows = _normed(self.hidden, weights.before)
        query, key, value = (_product(rows, linear) for linear in (weights.query, weights.key, weights.value))
        if weights.query_norm is not None and weights.key_norm is not None:
            query, key = _normed(query, weights.query_norm), _normed(key, weights.key_norm)
        query, key, value = (each.view(self.rows, -1, shape.size) for each in (query, key, value))
        query, key = self._turned(query), self._turned(key)
        keys, values = (each[1:-1, :, :LENGTH].double() for each in (self.keys, self.values))
        number = torch.arange(self.rows)
        keys[number, :, self.positions], values[number, :, self.positions] = key.double(), value.double()
        groups = shape.heads // shape.kv_heads
        scores = torch.einsum("rhd,rhld->rhl", query.double(), keys.repeat_interleave(groups, 1)) * weights.scale
        scores = scores.masked_fill(~self.visible[:, None], -math.inf)
        sinks = torch.full((shape.heads,), -math.inf) if weights.sinks is None else weights.sinks
        extended = torch.cat([scores, sinks.double()[None, :, None].expand(self.rows, -1, 1)], dim=-1)
        shares = torch.softmax(extended, dim=-1)[..., :-1]
        attended = torch.einsum("rhl,rhld->rhd", shares, values.repeat_interleave(groups, 1)).bfloat16()
        residual = self.hidden + _product(attended.flatten(1), weights.out)
        return residual, _normed(residual, weights.after), key, value

    def _turned(self, heads: torch.Tensor) -> torch.Tensor:
        """As transformers' code in bfloat16, each of whose operations rounds."""
        half, rest = self.turned // 2, heads[..., self.turned :]
        heads = heads[..., : self.turned]
        cosines, sines = (each[:, None] for each in self.angles)
        if self.shape.has_half_angles:
            cosines, sines = torch.cat([cosines, cosines], dim=-1), torch.cat([sines, sines], dim=-1)
        rotated = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
        return torch.cat([heads * cosines + rotated * sines, rest], dim=-1)

    def _norm_of(self, heads: int) -> Norm | None:
        if not self.shape.has_norms:
            return None
        return self._norm(self.shape.size * (heads if self.shape.norms_heads_together else 1))

    def _norm(self, size: int) -> Norm:
        weight = 1 + 0.1 * torch.randn(size, generator=self._generator)
        return Norm(weight.bfloat16(), EPSILON, self.shape.rounds_first)

    def _linear(self, outputs: int, inputs: int, scale: float) -> Linear:
        weight = (torch.randn(outputs, inputs, generator=self._generator) * scale).bfloat16()
        return Linear(weight, self._random(outputs) if self.shape.has_biases else None)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator).bfloat16()


def _normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    wide = rows.double().view(len(rows), -1, len(norm.weight))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon)
    normed = (wide.bfloat16() if norm.rounds_first else wide) * norm.weight.double()
    return normed.bfloat16().view(rows.shape)


def _product(rows: torch.Tensor, linear: Linear) -> torch.Tensor:
    assert isinstance(linear.weight, torch.Tensor)
    product = rows.double() @ linear.weight.double().T
    return (product if linear.bias is None else product + linear.bias.double()).bfloat16()


def _check(actual: torch.Tensor, due: torch.Tensor) -> None:
    """A sum that is rounded the other way changes what is computed of it by a few roundings."""
    error = (actual.double() - due.double()).abs()
    assert actual.shape == due.shape
    assert (error <= 4 * ROUNDING * (due.double().abs() + due.double().abs().mean())).all()
    assert error.mean() <= ROUNDING / 2 * due.double().abs().mean()


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_each_step_is_computed_and_the_new_keys_are_kept(kernel: LinearKernel, name: str, rows: int) -> None:
    layer = Layer(SHAPES[name], rows)
    residual, normed, key, value = layer.due()
    keys, values = layer.keys.clone(), layer.values.clone()
    computed = layer.compute(kernel)
    assert computed[2] is None
    _check(computed[0], residual)
    _check(computed[1], normed)
    number = 1 + torch.arange(rows)
    _check(layer.keys[number, :, layer.positions], key)
    _check(layer.values[number, :, layer.positions], value)
    # nothing else is written
    for before, after in ((keys, layer.keys), (values, layer.values)):
        before[number, :, layer.positions] = after[number, :, layer.positions]
        assert torch.equal(before, after)


def test_without_a_mask_all_positions_are_seen(kernel: LinearKernel) -> None:
    layer = Layer(SHAPES["mixtral"], 4)
    layer.visible = torch.ones_like(layer.visible)
    residual, *_ = layer.due()
    _check(layer.compute(kernel, visible=None)[0], residual)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_router_chooses_experts_for_the_normed_rows(kernel: LinearKernel, rows: int) -> None:
    layer = Layer(SHAPES["qwen3"], rows)
    weight = torch.randn(16, layer.shape.hidden, generator=torch.Generator().manual_seed(rows)).bfloat16()
    router = RouterKernel(kernel, RouterWeights(weight=weight, k=4, scoring=Scoring.SOFTMAX, normalizes=True))
    _, normed, routed, slot = layer.compute(kernel, router=router)
    assert slot < 0
    assert routed is not None
    for actual, due in zip(routed, router.route(normed), strict=True):
        assert torch.equal(actual, due)


@pytest.mark.parametrize(("rows", "experts_per_row"), [(1, 4), (2, 3), (3, 4)])
def test_a_message_of_another_size_is_not_posted(kernel: LinearKernel, rows: int, experts_per_row: int) -> None:
    layer = Layer(SHAPES["mixtral"], 2)
    weight = torch.zeros(16, layer.shape.hidden).bfloat16()
    router = RouterKernel(kernel, RouterWeights(weight=weight, k=4, scoring=Scoring.SOFTMAX))
    request = RequestHeader(rows=rows, experts_per_row=experts_per_row)
    nowhere = Posting(ctypes.addressof(request), ctypes.addressof(request))
    with pytest.raises(NativeError, match="size"):
        layer.compute(kernel, router=router, posting=nowhere)


def test_memory_that_is_divided_anew_is_described_anew(kernel: LinearKernel) -> None:
    layer = Layer(SHAPES["mixtral"], 2)
    block = AttentionBlock(kernel, layer.weights)
    step = layer.step()
    first = block.compute(layer.hidden, step, keys=layer.keys.clone(), values=layer.values.clone())
    wide = [torch.zeros(4, 2, LENGTH + 30, 32, dtype=torch.bfloat16) for _ in range(2)]
    for memory, held in zip(wide, (layer.keys, layer.values), strict=True):
        memory[:, :, : held.shape[2]] = held
    second = block.compute(layer.hidden, step, keys=wide[0], values=wide[1])
    assert torch.equal(first[0], second[0])


def test_what_does_not_fit_is_refused(kernel: LinearKernel) -> None:
    layer = Layer(SHAPES["mixtral"], 2)
    for name, wrong in (
        ("hidden", layer.hidden.float()),
        ("hidden", layer.hidden[:, 1:]),
        ("hidden", layer.hidden[:1]),
        ("positions", layer.positions.int()),
        ("cosines", torch.tensor([3])),
        ("keys", layer.keys[:, :1]),
        ("keys", layer.keys[:2]),
        ("keys", layer.keys[:, :, : LENGTH - 1]),
        ("values", layer.values.float()),
        ("values", layer.values[:-1]),
        ("visible", layer.visible[:, 1:]),
    ):
        changed: dict[str, Any] = {"positions" if name == "cosines" else name: wrong}
        with pytest.raises(NativeError, match=rf"^{name}: expected "):
            layer.compute(kernel, **changed)
    for beyond in (-1, LENGTH):
        with pytest.raises(NativeError, match="size"):
            layer.compute(kernel, positions=torch.tensor([2, beyond]))


def test_weights_that_do_not_fit_are_refused(kernel: LinearKernel) -> None:
    layer = Layer(SHAPES["gpt_oss"], 1)
    weights = layer.weights
    wide = replace(weights.before, weight=weights.before.weight.float())
    with pytest.raises(NativeError, match=r"^before: expected contiguous bfloat16"):
        AttentionBlock(kernel, replace(weights, before=wide))
    assert weights.sinks is not None
    with pytest.raises(NativeError, match=r"^sinks: expected float32"):
        AttentionBlock(kernel, replace(weights, sinks=weights.sinks[:-1]))
    short = replace(weights.before, weight=weights.before.weight[:-1])
    for change in ({"out": weights.query}, {"before": short}, {"query_norm": short}):
        layer.weights = replace(weights, **change)
        with pytest.raises(NativeError, match="size"):
            layer.compute(kernel)
