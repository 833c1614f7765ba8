"""Every tier that this CPU has, forced in turn, against float64 and against the scalar tier."""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cpu_expert_service import native_kernel
from cpu_expert_service.kernel import PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel
from cpu_expert_service.ram import copy_layers
from fiddler.expert_math import ExpertWeights, LayerWeights, UnknownActivationError
from fiddler.kernels import native
from fiddler.kernels.native import NativeError, NativeUnavailableError, Pool, available_tiers, node_ranges, tiers
from tests.support.weights import plain

try:
    AVAILABLE = available_tiers()
except NativeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

FLOAT32_ERROR = 5e-7
"""Largest error of a sum, relative to sum |w||x|, with float32 operands: as many roundings of 2^-24 as a lane has
additions, and the error that the activation passes on."""
BFLOAT16_ERROR = 2**-9
"""The same if the activated values are rounded to bfloat16, each by at most 2^-9 of itself."""
FLOOR = 1e-30
"""Below this, bfloat16 instructions read numbers as 0."""

ACTIVATIONS = ("silu", "gelu", "gelu_new", "relu", "relu2", "clamped_swiglu", "clamped_silu")
FORMATS = (torch.bfloat16, torch.float16, torch.float32)
Layout = str
LAYOUTS: tuple[Layout, ...] = ("rows", "transposed", "interleaved", "interleaved transposed")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool([0, 1] if torch.get_num_threads() > 1 else [0])
    yield pool
    pool.close()


@pytest.fixture(scope="module", params=AVAILABLE)
def kernel(request: pytest.FixtureRequest, pool: Pool) -> NativeKernel:
    return NativeKernel(pool, request.param)


@pytest.fixture(scope="module")
def scalar(pool: Pool) -> NativeKernel:
    return NativeKernel(pool, "scalar")


@dataclass(frozen=True)
class Problem:
    """A layer and a message for it."""

    layer: LayerWeights
    hidden: torch.Tensor
    expert_ids: torch.Tensor
    routing_weights: torch.Tensor

    def run(self, kernel: NativeKernel, output_dtype: torch.dtype | None = torch.float32) -> torch.Tensor:
        return kernel.prepare(self.layer, output_dtype)(self.hidden, self.expert_ids, self.routing_weights)

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact result, and the same sums over absolute values."""
        total = torch.zeros(self.hidden.shape, dtype=torch.float64)
        scale = torch.zeros_like(total)
        for row, ids in enumerate(self.expert_ids.tolist()):
            for column, number in enumerate(ids):
                if number >= 0:
                    output, magnitude = self._expert(self.layer.experts[number], self.hidden[row].double())
                    weight = self.routing_weights[row, column].double()
                    total[row] += weight * output
                    scale[row] += weight.abs() * magnitude
        return total, scale

    def _expert(self, expert: ExpertWeights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact output, and the scale of its error: sum |w||x| of each projection, passed on to the next."""
        up, up_scale = _project(plain(expert.up), expert.up_bias, x)
        if expert.factor is not None:
            factor, factor_scale = _project(plain(expert.factor), None, x)
            up, up_scale = up * factor, up_scale * factor.abs() + up.abs() * factor_scale
        if expert.gate is None:
            inner, slope = self._activate(up)
            inner_scale = inner.abs() + slope * up_scale
        else:
            gate, gate_scale = _project(plain(expert.gate), expert.gate_bias, x)
            if self.layer.activation == "clamped_swiglu":
                gate, up = gate.clamp(max=self.layer.limit), up.clamp(-self.layer.limit, self.layer.limit) + 1
            if self.layer.activation == "clamped_silu":
                gate, up = gate.clamp(max=self.layer.limit), up.clamp(-self.layer.limit, self.layer.limit)
            activated, slope = self._activate(gate)
            inner = activated * up
            inner_scale = inner.abs() + activated.abs() * up_scale + slope * gate_scale * up.abs()
        output, output_scale = _project(plain(expert.down), expert.down_bias, inner)
        return output, output_scale + plain(expert.down).double().abs() @ inner_scale

    def _activate(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each value, the activation and a bound of its slope nearby."""
        slope = torch.full_like(values, 1.2)
        match self.layer.activation:
            case "silu" | "clamped_silu":
                return functional.silu(values), slope
            case "gelu":
                return functional.gelu(values), slope
            case "gelu_new":
                return functional.gelu(values, approximate="tanh"), slope
            case "clamped_swiglu":
                return values * torch.sigmoid(self.layer.alpha * values), slope
            case "relu2":
                return functional.relu(values).square(), 2 * values.abs()
            case _:
                return functional.relu(values), slope

    def tolerance(self, kernel: NativeKernel) -> float:
        dtypes = {self.hidden.dtype, plain(self.layer.experts[0].up).dtype}
        rounds = kernel.name.endswith("bf16") and dtypes == {torch.bfloat16}
        return BFLOAT16_ERROR if rounds else FLOAT32_ERROR


def _project(matrix: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    offset = torch.zeros((), dtype=torch.float64) if bias is None else bias.double()
    return matrix.double() @ x + offset, matrix.double().abs() @ x.abs() + offset.abs()


def assert_close(problem: Problem, kernel: NativeKernel) -> None:
    exact, scale = problem.solve()
    output = problem.run(kernel)
    assert output.dtype is torch.float32
    bound = problem.tolerance(kernel) * scale + FLOOR
    worst = ((output.double() - exact).abs() / bound).max()
    assert worst <= 1, f"{float(worst):.2f} of the largest error allowed"


def lay_out(values: torch.Tensor, layout: Layout, dtype: torch.dtype, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices [2, out, in] as two strided views of one block of memory that starts at any byte."""
    _, out, length = values.shape
    if layout == "rows":
        order, shape = values, (2, out, length)
    elif layout == "transposed":
        order, shape = values.transpose(1, 2), (2, length, out)
    elif layout == "interleaved":
        order, shape = values.transpose(0, 1), (out, 2, length)
    else:
        order, shape = values.permute(2, 1, 0), (length, out, 2)
    stored = order.contiguous().to(dtype).flatten()
    raw = torch.zeros(stored.numel() * stored.itemsize + 64, dtype=torch.uint8)
    buffer = bytearray(raw.numel())
    buffer[offset : offset + stored.numel() * stored.itemsize] = stored.view(torch.uint8).numpy().tobytes()
    flat = torch.frombuffer(buffer, dtype=dtype, count=stored.numel(), offset=offset).view(shape)
    if layout == "rows":
        return flat[0], flat[1]
    if layout == "transposed":
        return flat[0].T, flat[1].T
    if layout == "interleaved":
        return flat[:, 0], flat[:, 1]
    return flat[..., 0].T, flat[..., 1].T


def make_problem(
    rows: int,
    k: int,
    num_experts: int,
    hidden_size: int,
    intermediate_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    hidden_dtype: torch.dtype = torch.bfloat16,
    layout: Layout = "rows",
    activation: str = "silu",
    gated: bool = True,
    biased: bool = False,
    has_factor: bool = False,
    offset: int = 0,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def bias(length: int) -> torch.Tensor | None:
        return draw(length) if biased else None

    experts = []
    for _ in range(num_experts):
        wide = draw(2, intermediate_size, hidden_size) / math.sqrt(hidden_size)
        narrow = draw(2, hidden_size, intermediate_size) / math.sqrt(intermediate_size)
        gate, up = lay_out(wide, layout, dtype, offset)
        down, _ = lay_out(narrow, layout, dtype, offset)
        biases = bias(intermediate_size) if gated else None, bias(intermediate_size), bias(hidden_size)
        factor = lay_out(wide.flip(1), layout, dtype, offset)[1] if has_factor else None
        experts.append(ExpertWeights(gate if gated else None, up, down, *biases, factor=factor))
    ids = torch.randint(-1, num_experts, (rows, k), generator=generator, dtype=torch.int32)
    weights = draw(rows, k)
    weights[ids < 0] = math.nan  # these must not be read
    hidden = draw(rows, hidden_size).to(hidden_dtype)
    return Problem(LayerWeights(tuple(experts), activation), hidden, ids, weights)


problems = st.builds(
    make_problem,
    rows=st.one_of(st.integers(1, 9), st.integers(10, 80)),
    k=st.integers(1, 4),
    num_experts=st.integers(1, 6),
    hidden_size=st.integers(1, 150),
    intermediate_size=st.integers(1, 150),
    dtype=st.sampled_from(FORMATS),
    hidden_dtype=st.sampled_from((torch.bfloat16, torch.float32)),
    layout=st.sampled_from(LAYOUTS),
    activation=st.sampled_from([name for name in ACTIVATIONS if not name.startswith("clamped")]),
    gated=st.booleans(),
    biased=st.booleans(),
    has_factor=st.booleans(),
    offset=st.integers(0, 65),
    seed=st.integers(0, 2**32),
)


def test_random_layers_are_computed_exactly_enough(kernel: NativeKernel) -> None:
    @settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
    @given(problems)
    def check(problem: Problem) -> None:
        assert_close(problem, kernel)

    check()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 31, 64, 300])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_any_number_of_rows_is_computed(kernel: NativeKernel, dtype: torch.dtype, rows: int) -> None:
    for hidden_dtype in (torch.bfloat16, torch.float32):
        assert_close(make_problem(rows, 1, 1, 320, 192, dtype=dtype, hidden_dtype=hidden_dtype), kernel)


@pytest.mark.parametrize("rows", [1, 6, 40])
def test_long_sums_are_computed_in_pieces(kernel: NativeKernel, rows: int) -> None:
    for hidden_dtype in (torch.bfloat16, torch.float32):
        assert_close(make_problem(rows, 1, 1, 66, 14338, hidden_dtype=hidden_dtype), kernel)
        assert_close(make_problem(rows, 1, 1, 14338, 66, hidden_dtype=hidden_dtype), kernel)


@pytest.mark.parametrize("layout", ["transposed", "interleaved transposed"])
@pytest.mark.parametrize("rows", [1, 5, 17, 70, 300])
def test_wide_transposed_matrices_are_computed_in_blocks(kernel: NativeKernel, rows: int, layout: Layout) -> None:
    assert_close(make_problem(rows, 1, 1, 40, 2187, layout=layout, biased=True, offset=3), kernel)
    assert_close(make_problem(rows, 1, 1, 2187, 40, layout=layout, has_factor=True), kernel)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_computed(kernel: NativeKernel, activation: str) -> None:
    for gated in (True, False) if not activation.startswith("clamped") else (True,):
        problem = make_problem(20, 2, 4, 64, 96, activation=activation, gated=gated, biased=True)
        scaled = replace(problem, hidden=problem.hidden.float() * 8)
        assert_close(scaled, kernel)


@pytest.mark.parametrize("rows", [1, 40])
def test_rows_are_spread_over_many_experts_and_some_experts_have_none(kernel: NativeKernel, rows: int) -> None:
    problem = make_problem(rows, 8, 128, 64, 48)
    assert_close(problem, kernel)
    elsewhere = replace(problem, expert_ids=torch.full_like(problem.expert_ids, -1))
    assert torch.equal(elsewhere.run(kernel), torch.zeros(rows, 64))


def test_no_rows_and_no_experts_per_row_are_computed(kernel: NativeKernel) -> None:
    problem = make_problem(3, 2, 2, 32, 16)
    compute = kernel.prepare(problem.layer)
    assert compute(problem.hidden[:0], problem.expert_ids[:0], problem.routing_weights[:0]).shape == (0, 32)
    nothing = compute(problem.hidden, problem.expert_ids[:, :0], problem.routing_weights[:, :0])
    assert torch.equal(nothing, torch.zeros_like(problem.hidden))


def test_an_expert_named_twice_by_a_row_counts_twice(kernel: NativeKernel) -> None:
    problem = make_problem(4, 1, 1, 64, 32)
    once = replace(problem, expert_ids=torch.zeros(4, 1, dtype=torch.int32), routing_weights=torch.ones(4, 1))
    twice = replace(problem, expert_ids=torch.zeros(4, 2, dtype=torch.int32), routing_weights=torch.ones(4, 2))
    torch.testing.assert_close(twice.run(kernel), 2 * once.run(kernel), rtol=1e-6, atol=0)


def test_a_bfloat16_result_is_the_float32_one_rounded(kernel: NativeKernel) -> None:
    problem = make_problem(9, 2, 3, 64, 32)
    assert torch.equal(problem.run(kernel, None), problem.run(kernel).to(torch.bfloat16))


def test_the_result_does_not_depend_on_the_number_of_threads(kernel: NativeKernel) -> None:
    alone = Pool([0])
    try:
        for rows in (1, 30):
            problem = make_problem(rows, 2, 4, 512, 640)
            assert torch.equal(problem.run(kernel), problem.run(NativeKernel(alone, kernel.name)))
    finally:
        alone.close()


def test_two_nodes_compute_what_one_does(kernel: NativeKernel) -> None:
    pool = Pool([0, 1], [0, 1])
    try:
        for rows in (1, 30):
            problem = make_problem(rows, 2, 4, 200, 320)
            assert torch.equal(problem.run(NativeKernel(pool, kernel.name)), problem.run(kernel))
    finally:
        pool.close()


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_denormals_are_0_at_worst(kernel: NativeKernel, dtype: torch.dtype, rows: int) -> None:
    problem = make_problem(rows, 1, 1, 64, 64, dtype=dtype)
    tiny = torch.finfo(dtype).smallest_normal / 4
    experts = tuple(
        replace(expert, up=(plain(expert.up).double() * tiny).to(dtype).contiguous())
        for expert in problem.layer.experts
    )
    problem = replace(problem, layer=LayerWeights(experts, "relu"))
    assert_close(problem, kernel)


def _with_values(problem: Problem, values: list[tuple[int, int, float]]) -> Problem:
    hidden = problem.hidden.clone()
    for row, column, value in values:
        hidden[row % hidden.shape[0], column % hidden.shape[1]] = value
    return replace(problem, hidden=hidden)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_the_result_is_finite_exactly_where_the_scalar_tiers_is(
    kernel: NativeKernel, scalar: NativeKernel, activation: str, rows: int
) -> None:
    for value in (math.inf, -math.inf, math.nan, 3e38, -3e38):
        for hidden_dtype in (torch.bfloat16, torch.float32):
            problem = make_problem(rows, 2, 3, 66, 96, activation=activation, hidden_dtype=hidden_dtype)
            problem = _with_values(problem, [(0, 65, value), (rows // 2, 3, value)])
            assert torch.equal(problem.run(kernel).isfinite(), problem.run(scalar).isfinite())


def test_rows_beside_one_that_is_not_finite_are_not_touched(kernel: NativeKernel) -> None:
    for rows in (8, 40):
        problem = make_problem(rows, 1, 1, 96, 64)
        non_finite = _with_values(problem, [(3, 5, math.nan)]).run(kernel)
        clean = problem.run(kernel)
        others = [row for row in range(rows) if row != 3]
        assert torch.equal(non_finite[others], clean[others])


def test_copies_in_ram_give_the_same_result(kernel: NativeKernel) -> None:
    for layout in LAYOUTS:
        problem = make_problem(5, 2, 3, 130, 70, layout=layout)
        progress = Mock()
        (copy,) = copy_layers([problem.layer], kernel.pool, progress)
        assert all(plain(expert.up).is_contiguous() for expert in copy.experts)
        done_bytes, total_bytes = progress.call_args.args
        assert done_bytes == total_bytes
        for copied, expert in zip(copy.experts, problem.layer.experts, strict=True):
            assert torch.equal(plain(copied.down), plain(expert.down))
        assert_close(replace(problem, layer=copy), kernel)


def _expert(**changes: Any) -> ExpertWeights:
    expert = ExpertWeights(torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(8, 4))
    return replace(expert, **changes)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ((), "experts: there are none"),
        ((_expert(up=torch.zeros(8)),), r"experts\[0\].up: expected .* \[intermediate, hidden\], got float32 \[8\]"),
        ((_expert(up=torch.zeros(4, 8).int()),), r"experts\[0\].up: expected float32, bfloat16 or float16 .* int32"),
        ((_expert(gate=torch.zeros(3, 8)),), r"experts\[0\].gate: expected float32 \[4, 8\], got float32 \[3, 8\]"),
        ((_expert(down=torch.zeros(4, 8)),), r"experts\[0\].down: expected float32 \[8, 4\], got float32 \[4, 8\]"),
        ((_expert(), _expert(gate=None)), r"experts\[1\].gate: expected a matrix, got None"),
        ((_expert(gate=None), _expert()), r"experts\[0\].gate: expected a matrix, got None"),
        ((_expert(), _expert(up=torch.zeros(8, 4).T)), r"experts\[1\].up: expected strides \(8, 1\), got \(1, 4\)"),
        ((_expert(down_bias=torch.zeros(4)),), r"experts\[0\].down_bias: expected \[8\], got \[4\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    scalar: NativeKernel, experts: tuple[ExpertWeights, ...], message: str
) -> None:
    with pytest.raises(NativeError, match=message):
        scalar.prepare(LayerWeights(experts, "silu"))


@pytest.mark.parametrize(
    ("hidden", "ids", "weights", "message"),
    [
        (torch.zeros(2, 7), torch.zeros(2, 1).int(), torch.zeros(2, 1), r"hidden: expected .* \[rows, 8\]"),
        (torch.zeros(8), torch.zeros(2, 1).int(), torch.zeros(2, 1), "hidden: expected"),
        (torch.zeros(2, 8).half(), torch.zeros(2, 1).int(), torch.zeros(2, 1), "hidden: .* got float16"),
        (torch.zeros(2, 8), torch.zeros(2, 1), torch.zeros(2, 1), r"expert_ids: expected int32 \[2, k\]"),
        (torch.zeros(2, 8), torch.zeros(3, 1).int(), torch.zeros(3, 1), r"expert_ids: expected int32 \[2, k\]"),
        (torch.zeros(2, 8), torch.zeros(2, 1).int(), torch.zeros(2, 2), r"routing_weights: expected float32 \[2, 1\]"),
        (
            torch.zeros(2, 8),
            torch.zeros(2, 1).int() + 1,
            torch.zeros(2, 1),
            "out of range; there are 1",
        ),
        (torch.zeros(2, 8), torch.zeros(2, 1).int() - 2, torch.zeros(2, 1), "an expert id is out of range"),
    ],
)
def test_messages_that_do_not_fit_are_refused(
    kernel: NativeKernel, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, message: str
) -> None:
    compute = kernel.prepare(LayerWeights((_expert(),), "silu"))
    with pytest.raises(NativeError, match=message):
        compute(hidden, ids, weights)


def test_an_activation_that_is_unknown_or_lacks_its_gate_is_refused(scalar: NativeKernel) -> None:
    with pytest.raises(UnknownActivationError, match="'tanhshrink' is not supported"):
        scalar.prepare(LayerWeights((_expert(),), "tanhshrink"))
    with pytest.raises(NativeError, match="clamped_swiglu needs one"):
        scalar.prepare(LayerWeights((_expert(gate=None),), "clamped_swiglu"))


def test_a_tier_that_this_cpu_lacks_is_refused(pool: Pool) -> None:
    assert AVAILABLE[0] == "scalar"
    for tier in (*(tier for tier in tiers() if tier not in AVAILABLE), "sse9"):
        with pytest.raises(NativeError, match=f"{tier}: this CPU has scalar"):
            NativeKernel(pool, tier)


@pytest.mark.parametrize(("cpus", "nodes"), [([], []), ([0, 0], [0, 0]), ([0], [0, 1]), ([0], [-1])])
def test_a_pool_of_no_use_is_refused(cpus: list[int], nodes: list[int]) -> None:
    with pytest.raises(NativeError, match="cpus: at least one, each once, and a node for each"):
        Pool(cpus, nodes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_factor_multiplies_what_up_gives(kernel: NativeKernel, layout: Layout, rows: int) -> None:
    problem = make_problem(rows, 2, 3, 96, 70, layout=layout, has_factor=True)
    assert_close(problem, kernel)
    pytorch = PyTorchKernel(1).prepare(problem.layer)(
        problem.hidden.float(), problem.expert_ids, problem.routing_weights
    )
    exact, _ = problem.solve()
    torch.testing.assert_close(pytorch.double(), exact, rtol=1e-3, atol=1e-3)


def test_pytorch_agrees_on_biases_and_clamping(scalar: NativeKernel) -> None:
    threads = torch.get_num_threads()
    for activation in ("silu", "clamped_swiglu"):
        problem = make_problem(6, 2, 3, 64, 32, dtype=torch.float32, hidden_dtype=torch.float32, biased=True)
        layer = replace(problem.layer, activation=activation)
        expected = PyTorchKernel(threads).prepare(layer)(problem.hidden, problem.expert_ids, problem.routing_weights)
        torch.testing.assert_close(replace(problem, layer=layer).run(scalar), expected, rtol=1e-4, atol=1e-5)


def test_the_library_names_its_tiers_and_formats(scalar: NativeKernel) -> None:
    assert set(AVAILABLE) <= set(tiers())
    assert len(set(tiers())) == len(tiers())
    assert {getattr(torch, name) for name in native.dtypes()} == set(FORMATS)


@pytest.mark.parametrize("activation", native.activations())
def test_every_activation_of_the_library_has_a_name_in_configurations(activation: str, scalar: NativeKernel) -> None:
    assert activation in native_kernel._ACTIVATIONS.values()


def test_an_output_belongs_to_the_node_whose_threads_compute_it() -> None:
    for num_nodes in (1, 2, 3, 8):
        for outputs in (1, 63, 64, 65, 1000, 14336):
            ranges = node_ranges(outputs, num_nodes)
            assert len(ranges) == num_nodes
            assert all(begin % 64 == 0 for begin, _ in ranges)  # panels and tiles of a node are whole


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    native.load.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
    try:
        with pytest.raises(NativeUnavailableError, match="is of another version; install again"):
            native.load()
    finally:
        native.load.cache_clear()
