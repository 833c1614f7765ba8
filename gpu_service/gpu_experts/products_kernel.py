"""A Triton kernel that multiplies rows with the matrices of several experts, each where it lies in the GPU's memory.

The kernel finds matrices by their addresses, so one launch serves any number of slots, and no weight is copied. Coded
weights are decoded in registers. `projections.py` has what it is told of each matrix. Imported only where Triton is.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl

from gpu_service.gpu_experts.projections import NUM_FACTS

OUTPUTS_AT_ONCE = 32
MIN_ROWS = 16
"""Rows that the product of a tile takes at least."""
_DTYPES: Final = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.uint8: tl.uint8,
}
_FACTS = tl.constexpr(NUM_FACTS)
_E4M3, _INT8, _UINT8, _UINT4, _E2M1 = (tl.constexpr(code) for code in range(1, 6))
"""Values of fiddler.coding.Code; 0 stands for plain weights."""
_E8M0_SCALES, _E4M3_SCALES = tl.constexpr(3), tl.constexpr(4)
"""Values of fiddler.coding.ScaleKind that are stored in bytes."""


def name_of(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype."""
    return _DTYPES[dtype]


def factors_name(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype in which tiles are multiplied; its interpreter's products know no bfloat16."""
    return tl.float32 if triton.knobs.runtime.interpret and dtype is torch.bfloat16 else _DTYPES[dtype]


@triton.jit
def _e4m3(byte):
    """Bytes -> what they stand for as FP8 with 3 bits of mantissa, in float32."""
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    normal = (((exponent + 120) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    magnitude = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.001953125, normal)
    magnitude = tl.where((byte & 127) == 127, float("nan"), magnitude)
    return tl.where(byte >= 128, -magnitude, magnitude)


@triton.jit
def _e8m0(byte):
    """Bytes -> 2^(byte - 127) in float32; of 0, which is a subnormal number, by its bits."""
    power = tl.where(byte == 0, 1 << 22, byte << 23).to(tl.float32, bitcast=True)
    return tl.where(byte == 255, float("nan"), power)


@triton.jit
def _e2m1(code):
    """Codes of 4 bits -> what they stand for as FP4, in float32."""
    magnitude = code & 7
    half_steps = tl.where(magnitude < 2, magnitude, (2 + (magnitude & 1)) << tl.maximum((magnitude >> 1) - 1, 0))
    value = half_steps.to(tl.float32) * 0.5
    return tl.where(code >= 8, -value, value)


@triton.jit
def _decoded(  # type: ignore[no-untyped-def] # Triton reads annotations as its own
    fact,
    output,
    inputs,
    num_inputs,
    mask,
    CODE: tl.constexpr,  # noqa: N803 # Triton's custom for constants
    STORED: tl.constexpr,  # noqa: N803
    SCALE: tl.constexpr,  # noqa: N803
    GROUP_INPUTS: tl.constexpr,  # noqa: N803
    GROUP_OUTPUTS: tl.constexpr,  # noqa: N803
    HAS_ZEROS: tl.constexpr,  # noqa: N803
):
    """A tile of coded weights, [inputs, outputs] float32: (code - zero) * (scale * multiplier)."""
    codes = tl.multiple_of(tl.load(fact).to(tl.pointer_type(tl.uint8)), 16)
    if CODE == _UINT4 or CODE == _E2M1:  # noqa: SIM109 # Triton compiles no tuple of these
        packed = tl.load(codes + output[None, :] * (num_inputs // 2) + (inputs // 2)[:, None], mask=mask, other=0)
        code = (packed.to(tl.int32) >> ((inputs & 1) * 4)[:, None]) & 15
    else:
        code = tl.load(codes + output[None, :] * num_inputs + inputs[:, None], mask=mask, other=0).to(tl.int32)
    if CODE == _E4M3:
        weights = _e4m3(code)
    elif CODE == _E2M1:
        weights = _e2m1(code)
    elif CODE == _INT8:
        weights = (code - ((code >> 7) << 8)).to(tl.float32)
    else:
        weights = code.to(tl.float32)
    num_groups = (num_inputs + GROUP_INPUTS - 1) // GROUP_INPUTS
    group = ((output + tl.load(fact + 4)) // GROUP_OUTPUTS)[None, :] * num_groups + (inputs // GROUP_INPUTS)[:, None]
    if HAS_ZEROS:
        weights -= tl.load(tl.load(fact + 2).to(tl.pointer_type(tl.uint8)) + group, mask=mask, other=0).to(tl.float32)
    elif CODE == _UINT8:
        weights -= 128.0
    elif CODE == _UINT4:
        weights -= 8.0
    stored = tl.load(tl.load(fact + 1).to(tl.pointer_type(STORED)) + group, mask=mask, other=0)
    if SCALE == _E8M0_SCALES:
        scale = _e8m0(stored.to(tl.int32))
    elif SCALE == _E4M3_SCALES:
        scale = _e4m3(stored.to(tl.int32))
    else:
        scale = stored.to(tl.float32)
    return weights * (scale * tl.load(fact + 5).to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["num_rows"])  # or one row, sixteen and the others would each be compiled, amid a request
def products(  # type: ignore[no-untyped-def] # see _decoded
    rows,
    facts,
    results,
    num_rows,
    num_inputs,
    num_outputs,
    OWN_ROWS: tl.constexpr,  # noqa: N803
    CODE: tl.constexpr,  # noqa: N803
    STORED: tl.constexpr,  # noqa: N803
    SCALE: tl.constexpr,  # noqa: N803
    GROUP_INPUTS: tl.constexpr,  # noqa: N803
    GROUP_OUTPUTS: tl.constexpr,  # noqa: N803
    HAS_ZEROS: tl.constexpr,  # noqa: N803
    BIAS: tl.constexpr,  # noqa: N803
    FACTORS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
):
    """Writes rows x matrix^T + bias of each expert to `results`, [experts, rows, outputs].

    One program computes all rows of OUTPUTS outputs of one expert. Sums are taken in float32 and rounded once.

    Args:
        rows: [experts, rows, inputs], or [rows, inputs] for all experts.
        facts: [experts, NUM_FACTS] int64: see projections.py.
        results: Where they are written.
        num_rows: At most ROWS.
        num_inputs: Of a matrix.
        num_outputs: Of a matrix.
        OWN_ROWS: Whether each expert has rows of its own.
        CODE: Of the weights; 0: they are plain.
        STORED: The dtype of plain weights, or of scales as they are stored.
        SCALE: The kind of the scales.
        GROUP_INPUTS: Inputs that share a scale.
        GROUP_OUTPUTS: Outputs that share a scale.
        HAS_ZEROS: Whether groups have zero points.
        BIAS: The dtype of the biases; None: there are none.
        FACTORS: The dtype in which rows and weights are multiplied; decoded weights are rounded to that of the rows.
        ROWS: Rows of a tile.
        OUTPUTS: Outputs of a tile.
        INPUTS: Inputs of a tile.
    """
    expert = tl.program_id(1)
    fact = facts + expert * _FACTS
    row = tl.arange(0, ROWS)
    output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    if OWN_ROWS:
        rows += expert.to(tl.int64) * num_rows * num_inputs
    is_row, is_output = row < num_rows, output < num_outputs
    sums = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for first in range(0, num_inputs, INPUTS):
        inputs = first + tl.arange(0, INPUTS)
        is_input = inputs < num_inputs
        factor = tl.load(
            rows + row[:, None] * num_inputs + inputs[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0
        )
        mask = is_input[:, None] & is_output[None, :]
        if CODE == 0:
            matrix = tl.multiple_of(tl.load(fact).to(tl.pointer_type(STORED)), 16)
            weights = tl.load(matrix + output[None, :] * num_inputs + inputs[:, None], mask=mask, other=0.0)
        else:
            weights = _decoded(
                fact, output, inputs, num_inputs, mask, CODE, STORED, SCALE, GROUP_INPUTS, GROUP_OUTPUTS, HAS_ZEROS
            ).to(factor.dtype)
            weights = tl.where(mask, weights, 0.0)  # a scale that is masked out may stand for NaN
        sums = tl.dot(factor.to(FACTORS), weights.to(FACTORS), sums, input_precision="ieee")
    if BIAS is not None:
        bias = tl.load(tl.load(fact + 3).to(tl.pointer_type(BIAS)) + output, mask=is_output, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    places = (expert.to(tl.int64) * num_rows + row)[:, None] * num_outputs + output[None, :]
    tl.store(results + places, sums.to(results.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
