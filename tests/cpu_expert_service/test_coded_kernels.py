"""Experts in 8 and 4 bits: every tier against the weights that their codes stand for, in float64."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from cpu_expert_service.native_kernel import NativeKernel
from fiddler.coding import Code, CodedTensor, Coding, ScaleKind, dequantize
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import Pool, available_tiers
from tests.support.coded_matrices import random_coded

NUM_EXPERTS = 3
FLOAT32_ERROR = 5e-7
"""Of the sum of |weight x input|: float32 sums over some hundreds of inputs."""
BFLOAT16_ERROR = 2.0**-9
"""The same where hidden rows, what is between the projections, and results are rounded to bfloat16."""


@dataclass(frozen=True)
class Case:
    """One coding and the sizes of a layer."""

    coding: Coding
    down: Coding
    hidden: int
    intermediate: int
    multiplier: float = 1.0


def _case(
    code: Code, scale: ScaleKind, group: int | None, *, hidden: int = 256, intermediate: int = 192, **more: object
) -> Case:
    zeros, outputs, multiplier = (
        bool(more.get("zeros")),
        int(str(more.get("outputs", 1))),
        float(str(more.get("multiplier", 1.0))),
    )
    return Case(
        Coding(code, scale, group or hidden, outputs, zeros),
        Coding(code, scale, group or intermediate, outputs, zeros),
        hidden,
        intermediate,
        multiplier,
    )


CASES = {
    "fp8 128x128": _case(Code.E4M3, ScaleKind.FLOAT32, 128, outputs=128, hidden=320, intermediate=200),
    "fp8 channel": _case(Code.E4M3, ScaleKind.BFLOAT16, None, hidden=202, intermediate=70),
    "mxfp8": _case(Code.E4M3, ScaleKind.E8M0, 32),
    "int8 channel": _case(Code.INT8, ScaleKind.FLOAT32, None, hidden=202, intermediate=70),
    "int8 group": _case(Code.INT8, ScaleKind.FLOAT16, 32),
    "uint8": _case(Code.UINT8, ScaleKind.BFLOAT16, None),
    "uint8 zeros": _case(Code.UINT8, ScaleKind.BFLOAT16, 64, zeros=True),
    "int4 group 32": _case(Code.UINT4, ScaleKind.BFLOAT16, 32),
    "int4 group 128 zeros": _case(Code.UINT4, ScaleKind.FLOAT16, 128, zeros=True, hidden=384, intermediate=256),
    "int4 group 32 zeros": _case(Code.UINT4, ScaleKind.FLOAT32, 32, zeros=True),
    "int4 channel": _case(Code.UINT4, ScaleKind.FLOAT32, None, hidden=136, intermediate=72),
    "mxfp4": _case(Code.E2M1, ScaleKind.E8M0, 32),
    # whole blocks, whose scales are read where they are stored
    "int4 whole blocks": _case(Code.UINT4, ScaleKind.BFLOAT16, 32, hidden=256, intermediate=384, multiplier=0.37),
    "mxfp4 whole blocks": _case(Code.E2M1, ScaleKind.E8M0, 32, hidden=256, intermediate=384, multiplier=0.37),
    "nvfp4": _case(Code.E2M1, ScaleKind.E4M3, 16, hidden=208, intermediate=176, multiplier=0.37),
    "int4 group 512": _case(Code.UINT4, ScaleKind.FLOAT32, 512, hidden=1024, intermediate=512),
    "int4 group 96": _case(Code.UINT4, ScaleKind.FLOAT32, 96),  # no digits: groups and vectors do not end together
    "long channel": _case(Code.UINT4, ScaleKind.FLOAT32, None, hidden=64, intermediate=4096 + 104),
    "fp8 long rows": _case(Code.E4M3, ScaleKind.FLOAT32, 128, outputs=128, hidden=64, intermediate=4096 + 96),
    "int8 whole blocks": _case(Code.INT8, ScaleKind.FLOAT32, None, hidden=256, intermediate=384),
    "int8 long rows": _case(Code.INT8, ScaleKind.BFLOAT16, 128, hidden=128, intermediate=4096 + 128),
    "uint8 group 128 zeros": _case(Code.UINT8, ScaleKind.BFLOAT16, 128, zeros=True, hidden=256, intermediate=384),
    "long rows": _case(Code.UINT4, ScaleKind.BFLOAT16, 32, hidden=64, intermediate=4096 + 96),
}


def _layer(case: Case, *, gated: bool = True) -> LayerWeights:
    generator = torch.Generator().manual_seed(1)

    def expert() -> ExpertWeights:
        wide = [random_coded(case.coding, case.intermediate, case.hidden, case.multiplier, generator) for _ in range(2)]
        down = random_coded(case.down, case.hidden, case.intermediate, case.multiplier, generator)
        return ExpertWeights(gate=wide[0] if gated else None, up=wide[1], down=down)

    return LayerWeights(tuple(expert() for _ in range(NUM_EXPERTS)), "silu")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool([0, 1][: max(1, torch.get_num_threads())])
    yield pool
    pool.close()


def _due(
    layer: LayerWeights, hidden: torch.Tensor, ids: torch.Tensor, routing: torch.Tensor, round_inner: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs in float64, and the sums of absolute values that errors are measured by."""
    rows = hidden.double()
    total, size = torch.zeros_like(rows), torch.zeros_like(rows)
    for number, expert in enumerate(layer.experts):
        assert isinstance(expert.up, CodedTensor)
        assert isinstance(expert.down, CodedTensor)
        up, down = dequantize(expert.up).double(), dequantize(expert.down).double()
        inner, inner_size = rows @ up.T, rows.abs() @ up.abs().T
        if isinstance(expert.gate, CodedTensor):
            gate = dequantize(expert.gate).double()
            gated, gate_size = rows @ gate.T, rows.abs() @ gate.abs().T
            inner_size = gate_size * inner.abs() * 1.1 + torch.nn.functional.silu(gated).abs() * inner_size
            inner = torch.nn.functional.silu(gated) * inner
        else:
            inner, inner_size = torch.nn.functional.silu(inner), inner_size * 1.1
        if round_inner:
            inner_size = inner_size + inner.abs()
        weight = (routing * (ids == number)).sum(-1, keepdim=True).double()
        total += weight * (inner @ down.T)
        size += weight * ((inner.abs() + inner_size) @ down.abs().T)
    return total, size


@pytest.mark.parametrize("rows", [1, 3, 6, 17, 64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tier", available_tiers())
def test_every_tier_computes_what_the_codes_stand_for(pool: Pool, tier: str, name: str, rows: int) -> None:
    layer = _layer(CASES[name])
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, CASES[name].hidden, generator=generator)
    hidden[0, 5] = 1000.0  # an outlier, which a scale for the whole row would let drown all others
    ids = torch.stack([torch.randperm(NUM_EXPERTS, generator=generator)[:2] for _ in range(rows)]).int()
    routing = torch.rand(rows, 2, generator=generator)
    compute = NativeKernel(pool, tier).prepare(layer)
    due, size = _due(layer, hidden, ids, routing, round_inner=False)
    assert ((compute(hidden, ids, routing).double() - due).abs() <= FLOAT32_ERROR * size).all()
    rounded = hidden.to(torch.bfloat16)
    due, size = _due(layer, rounded, ids, routing, round_inner=True)
    assert ((compute(rounded, ids, routing).double() - due).abs() <= BFLOAT16_ERROR * size).all()


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("rows", [1, 4, 17, 40])
def test_a_code_that_is_not_a_number_makes_its_output_none(pool: Pool, tier: str, rows: int) -> None:
    layer = _layer(CASES["mxfp8"], gated=False)
    down = layer.experts[1].down
    assert isinstance(down, CodedTensor)
    down.codes[7, 9], down.codes[8, 9] = 0x7F, 0xFF
    output = NativeKernel(pool, tier).prepare(layer)(
        torch.ones(rows, 256, dtype=torch.bfloat16), torch.ones(rows, 1, dtype=torch.int32), torch.ones(rows, 1)
    )
    assert output.isnan().sum(dim=0).nonzero().flatten().tolist() == [7, 8]


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("name", ["fp8 channel", "mxfp8"])
def test_the_smallest_numbers_of_fp8_count(pool: Pool, tier: str, name: str) -> None:
    """Subnormal codes, which products of bfloat16 on some CPUs take for 0 unless they are widened with care."""
    layer = _layer(CASES[name], gated=False)
    up = layer.experts[0].up
    assert isinstance(up, CodedTensor)
    up.codes[:] = 0x01  # 2^-9
    hidden, ids, routing = (
        torch.ones(1, CASES[name].hidden, dtype=torch.bfloat16),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, 1),
    )
    due, size = _due(layer, hidden, ids, routing, round_inner=True)
    output = NativeKernel(pool, tier).prepare(layer)(hidden, ids, routing)
    assert due.abs().max() > 0
    assert ((output.double() - due).abs() <= BFLOAT16_ERROR * size).all()


PREPARED = ("int4 group 32", "int4 group 32 zeros", "mxfp4", "nvfp4", "mxfp8", "int8 whole blocks")
"""Codes for which some tiers write hidden rows in another form first."""


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("name", PREPARED)
def test_a_message_of_its_own_is_computed_where_an_earlier_one_lay(pool: Pool, tier: str, name: str) -> None:
    """What a thread keeps of a message's hidden rows must not be taken for those of the next message."""
    layer = _layer(CASES[name])
    compute = NativeKernel(pool, tier).prepare(layer)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.empty(4, CASES[name].hidden, dtype=torch.bfloat16)
    ids, routing = torch.tensor([[0], [1], [2], [0]], dtype=torch.int32), torch.ones(4, 1)
    for _ in range(3):
        hidden.copy_(torch.randn(hidden.shape, generator=generator))
        due, size = _due(layer, hidden, ids, routing, round_inner=True)
        assert ((compute(hidden, ids, routing).double() - due).abs() <= BFLOAT16_ERROR * size).all()


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("name", PREPARED)
def test_more_rows_than_are_kept_are_computed_right(pool: Pool, tier: str, name: str) -> None:
    layer = _layer(CASES[name])
    generator = torch.Generator().manual_seed(4)
    rows = 14 * NUM_EXPERTS  # as many for each expert as a tier multiplies at most, so that each thread meets 42
    hidden = torch.randn(rows, CASES[name].hidden, generator=generator).to(torch.bfloat16)
    ids = (torch.arange(rows) % NUM_EXPERTS).int()[:, None]
    routing = torch.ones(rows, 1)
    due, size = _due(layer, hidden, ids, routing, round_inner=True)
    output = NativeKernel(pool, tier).prepare(layer)(hidden, ids, routing)
    assert ((output.double() - due).abs() <= BFLOAT16_ERROR * size).all()


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_is_not_finite_spoils_no_other(pool: Pool, tier: str, name: str, value: float) -> None:
    layer = _layer(CASES[name])
    hidden = torch.ones(3, CASES[name].hidden, dtype=torch.bfloat16)
    hidden[1, 40] = value
    output = NativeKernel(pool, tier).prepare(layer)(hidden, torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1))
    assert output.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("tier", available_tiers())
@pytest.mark.parametrize("name", ["int4 group 32", "mxfp8", "int8 whole blocks"])
@pytest.mark.parametrize("exponent", [-133, -100, -60, 0, 40])
def test_rows_of_every_size_keep_their_digits(pool: Pool, tier: str, exponent: int, name: str) -> None:
    """Powers of two change no digit; the smallest numbers become 0 rather than anything else."""
    layer = _layer(replace(CASES[name], multiplier=2.0 ** -min(exponent, 0) if exponent > -100 else 1.0))
    hidden = torch.randn(2, CASES[name].hidden, generator=torch.Generator().manual_seed(5))
    rounded = (hidden.to(torch.bfloat16).double() * 2.0**exponent).to(torch.bfloat16)
    ids, routing = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    due, size = _due(layer, rounded, ids, routing, round_inner=True)
    output = NativeKernel(pool, tier).prepare(layer)(rounded, ids, routing).double()
    assert output.isfinite().all() or not due.to(torch.bfloat16).isfinite().all()
    assert ((output - due).abs() <= BFLOAT16_ERROR * size + 2.0**-100).all()


@pytest.mark.parametrize("tier", available_tiers())
def test_the_first_and_the_last_power_of_two_are_the_smallest_scale_and_no_number(pool: Pool, tier: str) -> None:
    layer = _layer(CASES["mxfp4 whole blocks"])
    hidden = torch.randn(1, CASES["mxfp4 whole blocks"].hidden, generator=torch.Generator().manual_seed(1))
    hidden, routing = hidden.to(torch.bfloat16), torch.ones(1, 1)
    for expert, exponent in ((0, 0), (1, 255)):
        down = layer.experts[expert].down
        assert isinstance(down, CodedTensor)
        down.scales[3] = exponent
    small, none = (
        NativeKernel(pool, tier).prepare(layer)(hidden, torch.tensor([[expert]], dtype=torch.int32), routing)
        for expert in (0, 1)
    )
    assert small[0, 3].abs() < 1e-30
    assert small[0, 2].abs() > 1e-30
    assert torch.isfinite(small).all()
    assert torch.isnan(none[0, 3])
    assert torch.isfinite(none[0, :3]).all()
