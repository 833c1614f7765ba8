"""Attention of one token for each of several sequences, by every tier: held against float64."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiddler.kernels.attention import AttentionKernel
from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError, Pool, available_tiers

FLOAT32_ERROR = 4e-6
BFLOAT16_ROUNDING = 2.0**-8
SHAPES = {
    # rows, heads, heads of keys, positions, sizes of a key and of a value
    "one position": (1, 8, 2, 1, 64, 64),
    "mixtral": (1, 32, 8, 60, 128, 128),
    "qwen3": (3, 32, 4, 1300, 128, 128),
    "latents": (2, 6, 6, 513, 192, 128),
    "no vector's multiple": (2, 15, 5, 100, 83, 71),
    "smaller than a vector": (1, 7, 1, 70, 5, 3),
    "one head": (1, 1, 1, 3000, 64, 64),
    "many rows": (16, 24, 2, 65, 96, 96),
}


@pytest.fixture(scope="module", params=available_tiers())
def kernel(request: pytest.FixtureRequest) -> Iterator[AttentionKernel]:
    pool = Pool([0, 1][: max(1, torch.get_num_threads())])
    yield AttentionKernel(LinearKernel(pool, request.param))
    pool.close()


def _random(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, and keys and values that are parts of a larger cache."""
    rows, heads, kv_heads, length, key_size, value_size = shape
    queries = torch.randn(rows, heads, key_size, generator=generator).to(dtype)
    keys = torch.randn(rows + 1, kv_heads, length + 3, key_size, generator=generator).to(dtype)
    values = torch.randn(rows + 1, kv_heads, length + 3, value_size, generator=generator).to(dtype)
    return queries, keys[1:, :, :length], values[1:, :, :length]


def _due(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    visible: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    wide = [each.double() for each in (queries, keys, values)]
    groups = queries.shape[1] // keys.shape[1]
    query, key, value = wide[0], wide[1].repeat_interleave(groups, 1), wide[2].repeat_interleave(groups, 1)
    scores = torch.einsum("rhd,rhld->rhl", query, key) * (1 / math.sqrt(keys.shape[-1]) if scale is None else scale)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -math.inf)
    none = torch.full((queries.shape[1],), -math.inf)
    sink = (none if sinks is None else sinks).double()[None, :, None].expand(len(queries), -1, 1)
    shares = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
    return torch.einsum("rhl,rhld->rhd", shares, value)


def _check(actual: torch.Tensor, due: torch.Tensor) -> None:
    rounding = 0.0 if actual.dtype is torch.float32 else BFLOAT16_ROUNDING
    assert actual.shape == due.shape
    assert ((actual.double() - due).abs() <= FLOAT32_ERROR * due.abs().max() + rounding * due.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_with_masks_and_sinks(kernel: AttentionKernel, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, heads, _, length, *_ = shape = SHAPES[name]
    queries, keys, values = _random(shape, dtype, generator)
    holes = torch.rand(rows, length, generator=generator) < 0.7
    holes[:, length // 2] = True
    stops = torch.randint(1, length + 1, (rows, 1), generator=generator)
    causal = torch.arange(length) < stops
    window = causal & (torch.arange(length) >= stops - 40)
    sinks = torch.randn(heads, generator=generator) * 3
    for visible in (None, holes, causal, window):
        for sink in (None, sinks):
            actual = kernel.attend(queries, keys, values, visible=visible, sinks=sink, scale=0.3)
            assert actual.dtype is dtype
            _check(actual, _due(queries, keys, values, visible=visible, sinks=sink, scale=0.3))


def test_the_usual_scale(kernel: AttentionKernel) -> None:
    tensors = _random(SHAPES["mixtral"], torch.float32, torch.Generator().manual_seed(1))
    _check(kernel.attend(*tensors), _due(*tensors))


def test_scores_far_apart(kernel: AttentionKernel) -> None:
    queries, keys, values = _random((2, 4, 2, 700, 32, 32), torch.float32, torch.Generator().manual_seed(5))
    keys[:, :, 650] *= 400  # its score is far above, or far below, all others
    keys[:, :, 3] *= 100
    _check(kernel.attend(queries, keys, values), _due(queries, keys, values))


def test_what_is_hidden_is_not_read(kernel: AttentionKernel) -> None:
    queries, keys, values = _random((2, 4, 2, 600, 32, 32), torch.float32, torch.Generator().manual_seed(7))
    visible = torch.zeros(2, 600, dtype=torch.bool)
    visible[0, 30:590] = True
    visible[1, :7] = True
    due = _due(queries, keys, values, visible=visible)
    for tensor in (keys, values):
        tensor[0, :, :30], tensor[0, :, 590:], tensor[1, :, 7:] = math.nan, math.inf, math.nan
    _check(kernel.attend(queries, keys, values, visible=visible), due)


def test_what_is_not_a_number_stays_one_and_reaches_no_other_row(kernel: AttentionKernel) -> None:
    for length in (5, 600):
        queries, keys, values = _random((3, 4, 2, length, 32, 32), torch.float32, torch.Generator().manual_seed(7))
        due = _due(queries, keys, values)
        keys[0, 0, 4], values[2, 1, 3, 5] = math.nan, math.inf
        actual = kernel.attend(queries, keys, values)
        assert actual[0, :2].isnan().all()
        assert not actual[2, 2:, 5].isfinite().any()
        _check(actual[1], due[1])
        _check(actual[0, 2:], due[0, 2:])


def test_a_row_that_sees_nothing_gets_zeros(kernel: AttentionKernel) -> None:
    queries, keys, values = _random((2, 4, 2, 70, 32, 32), torch.bfloat16, torch.Generator().manual_seed(9))
    visible = torch.ones(2, 70, dtype=torch.bool)
    visible[1] = False
    actual = kernel.attend(queries, keys, values, visible=visible)
    assert (actual[1] == 0).all()
    _check(actual[:1], _due(queries[:1], keys[:1], values[:1]))


@settings(max_examples=30)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    pool = Pool([0])
    try:
        kernel = AttentionKernel(LinearKernel(pool, data.draw(st.sampled_from(available_tiers()))))
        kv_heads, groups = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 17))
        rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 1100))
        key_size, value_size = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
        shape = rows, kv_heads * groups, kv_heads, length, key_size, value_size
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        tensors = _random(shape, data.draw(st.sampled_from([torch.float32, torch.bfloat16])), generator)
        _check(kernel.attend(*tensors), _due(*tensors))
    finally:
        pool.close()


def test_the_number_of_threads_changes_nothing() -> None:
    tensors = _random(SHAPES["qwen3"], torch.bfloat16, torch.Generator().manual_seed(1))
    outputs = []
    for cpus in ([0], [0, 1][: max(1, torch.get_num_threads())]):
        pool = Pool(cpus)
        outputs.append(AttentionKernel(LinearKernel(pool, available_tiers()[-1])).attend(*tensors))
        pool.close()
    assert torch.equal(*outputs)


def test_tensors_that_do_not_fit_are_refused(kernel: AttentionKernel) -> None:
    queries, keys, values = _random((2, 4, 2, 7, 8, 8), torch.float32, torch.Generator().manual_seed(1))
    for wrong, message in (
        ((queries[:1], keys, values), r"keys \[2, 2, 7, 8\] and values \[2, 2, 7, 8\] do not fit 1 rows"),
        ((queries, keys[:, :, :6], values), "do not fit 2 rows"),
        ((queries, keys, values.bfloat16()), "queries, keys and values are of"),
        ((queries, keys.mT.contiguous().mT, values), "keys: expected float32 or bfloat16, 4 dimensions"),
        ((queries.half(), keys.half(), values.half()), "queries: expected float32 or bfloat16"),
        ((queries[:, :3], keys, values), "a size is less than 1"),
    ):
        with pytest.raises(NativeError, match=message):
            kernel.attend(*wrong)
    with pytest.raises(NativeError, match=r"visible: expected bool \[2, 7\]"):
        kernel.attend(queries, keys, values, visible=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(NativeError, match=r"sinks: expected float32 \[4\]"):
        kernel.attend(queries, keys, values, sinks=torch.ones(3))
