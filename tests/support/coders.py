"""Codes matrices in 8 and 4 bits as published checkpoints store them.

What a matrix stands for is computed here from the codes that were chosen, not by the code under test.
"""

from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
Coder = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
"""(name, weight [outputs, inputs]) -> (the tensors that are stored, the weight that they stand for)."""

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _groups(weight: torch.Tensor, size: int) -> torch.Tensor:
    return weight.reshape(*weight.shape[:-1], -1, size)


def _nearest_e2m1(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and what they stand for."""
    magnitude = (values.abs()[..., None] - _E2M1).abs().argmin(-1)
    codes = magnitude + 8 * (values < 0)
    return codes.to(torch.uint8), _E2M1[magnitude] * torch.where(values < 0, -1.0, 1.0)


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes as bytes, the first of two in the low half."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def _words(values: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Unsigned integers packed into int32 along a dimension, low bits first."""
    per_word = 32 // bits
    values = values.to(torch.int64).movedim(dim, -1)
    short = -values.shape[-1] % per_word
    values = _groups(torch.nn.functional.pad(values, (0, short)), per_word)
    words = (values << (torch.arange(per_word) * bits)).sum(-1)
    return (words - (words >= 2**31) * 2**32).to(torch.int32).movedim(-1, dim).contiguous()


def fp8(block: int | None, suffix: str = "_scale_inv", dtype: torch.dtype = torch.float32) -> Coder:
    """FP8 with a scale per block of that size, or per output."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, inputs = weight.shape
        rows, columns = (1, inputs) if block is None else (block, block)
        scales = torch.empty(-(-outputs // rows), -(-inputs // columns))
        stands_for, codes = torch.empty_like(weight), torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                scale = weight[part].abs().max() / 448
                if dtype == torch.float8_e8m0fnu:
                    scale = scale.log2().ceil().exp2()  # rounded up, so that the largest code is a number
                scale = scale.to(dtype).float()
                scales[i, j] = scale
                codes[part] = (weight[part] / scale).to(torch.float8_e4m3fn)
                stands_for[part] = codes[part].float() * scale
        return {name: codes, name + suffix: scales.to(dtype)}, stands_for

    return code


def int4(group: int, symmetric: bool, dtype: torch.dtype = torch.bfloat16) -> Coder:
    """compressed-tensors' packed 4-bit integers."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = _groups(weight, group)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        if symmetric:
            scales = (torch.maximum(-low, high) / 7.5).to(dtype)
            zeros = torch.full(scales.shape, 8)
        else:
            scales = ((high - low) / 15).to(dtype)
            zeros = (-low / scales.float()).round().clamp(0, 15).long()
        codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
        stands_for = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(-2)
        stem = name.removesuffix("weight")
        stored = {
            f"{stem}weight_packed": _words(codes.flatten(-2), 4, -1),
            f"{stem}weight_scale": scales,
            f"{stem}weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored[f"{stem}weight_zero_point"] = _words(zeros, 4, 0)
        return stored, stands_for

    return code


def int8(packed: bool) -> Coder:
    """compressed-tensors' 8-bit integers with a scale per output, packed into words or plain."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scales = (weight.abs().amax(-1, keepdim=True) / 127).to(torch.bfloat16)
        codes = (weight / scales.float()).round().clamp(-128, 127)
        stem = name.removesuffix("weight")
        stored = {f"{stem}weight_scale": scales}
        if packed:
            stored[f"{stem}weight_packed"] = _words(codes + 128, 8, -1)
            stored[f"{stem}weight_shape"] = torch.tensor(weight.shape)
        else:
            stored[name] = codes.to(torch.int8)
        return stored, codes * scales.float()

    return code


def int8_with_zeros(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """compressed-tensors' plain 8-bit integers with a scale and a zero point per output."""
    low, high = weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
    scales = ((high - low) / 255).to(torch.bfloat16)
    zeros = (-128 - low / scales.float()).round().clamp(-128, 127)
    codes = (weight / scales.float() + zeros).round().clamp(-128, 127)
    stem = name.removesuffix("weight")
    stored = {name: codes.to(torch.int8), f"{stem}weight_scale": scales}
    stored[f"{stem}weight_zero_point"] = zeros.to(torch.int8)
    return stored, (codes - zeros) * scales.float()


def mxfp4_packed(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """compressed-tensors' MXFP4."""
    codes, scales, stands_for = _mxfp4(weight)
    stem = name.removesuffix("weight")
    return {f"{stem}weight_packed": _pairs(codes), f"{stem}weight_scale": scales}, stands_for


def fp4_of_deepseek(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """DeepSeek-V4's experts."""
    codes, scales, stands_for = _mxfp4(weight)
    stored = {
        name: _pairs(codes).view(torch.int8),
        f"{name.removesuffix('weight')}scale": scales.view(torch.float8_e8m0fnu),
    }
    return stored, stands_for


def mxfp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """FP8 with a power of two for 32 inputs."""
    groups = _groups(weight, 32)
    exponents = (groups.abs().amax(-1) / 448).log2().ceil()
    codes = (groups / exponents.exp2()[..., None]).to(torch.float8_e4m3fn)
    stands_for = (codes.float() * exponents.exp2()[..., None]).flatten(-2)
    return {name: codes.flatten(-2), f"{name}_scale": (exponents + 127).to(torch.uint8)}, stands_for


def nvfp4(of_modelopt: bool) -> Coder:
    """NVFP4, in ModelOpt's spelling or compressed-tensors'."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = _groups(weight, 16)
        # a power of two, so that both spellings stand for the same numbers; not the same in every matrix
        factor = 0.5 if weight[0, 0] > 0 else 0.25
        scales = (groups.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
        divisor = scales.float()[..., None] * factor
        codes, values = _nearest_e2m1(groups / divisor.clamp(min=1e-12))
        stem = name.removesuffix("weight")
        packed = _pairs(codes.flatten(-2))
        if of_modelopt:
            stored = {name: packed, f"{stem}weight_scale": scales, f"{stem}weight_scale_2": torch.tensor(factor)}
            stored[f"{stem}input_scale"] = torch.tensor(1.0)
        else:
            stored = {f"{stem}weight_packed": packed, f"{stem}weight_scale": scales}
            stored[f"{stem}weight_global_scale"] = torch.tensor([1 / factor])
        return stored, (values * divisor).flatten(-2)

    return code


def mxfp4_blocks(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """gpt-oss's stacked experts; the weight is [experts, outputs, inputs]."""
    codes, scales, stands_for = _mxfp4(weight)
    blocks = _groups(_pairs(codes), 16)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, stands_for


def _mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = _groups(weight, 32)
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    codes, values = _nearest_e2m1(groups / exponents.exp2()[..., None])
    stands_for = (values * exponents.exp2()[..., None]).flatten(-2)
    return codes.flatten(-2), (exponents + 127).to(torch.uint8), stands_for


def gptq(bits: int, group: int | None, *, v2: bool = False, symmetric: bool = True) -> Coder:
    """GPTQ in its first form, whose zero points are stored less one, or its second."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        top = (1 << bits) - 1
        groups = _groups(weight, group or weight.shape[-1])
        scales, zeros = _scales_and_zeros(groups, top, symmetric)
        codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, top)
        stands_for = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(-2)
        stem = name.removesuffix("weight")
        size = group or weight.shape[-1]
        stored = {
            f"{stem}qweight": _words(codes.flatten(-2).T, bits, 0),
            f"{stem}qzeros": _words((zeros if v2 else zeros - 1).T & top, bits, 1),
            f"{stem}scales": scales.T,
            f"{stem}g_idx": (torch.arange(weight.shape[-1]) // size).to(torch.int32),
        }
        return stored, stands_for

    return code


def awq(group: int) -> Coder:
    """AWQ, version gemm."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = _groups(weight, group)
        scales, zeros = _scales_and_zeros(groups, 15, symmetric=False)
        codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
        stands_for = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(-2)
        stem = name.removesuffix("weight")

        def interleaved(values: torch.Tensor) -> torch.Tensor:
            """Of eight outputs 0, 2, 4, 6, 1, 3, 5, 7."""
            eights = _groups(values.T, 8)
            return _words(eights[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(-2), 4, 1)

        stored = {f"{stem}qweight": interleaved(codes.flatten(-2)), f"{stem}qzeros": interleaved(zeros)}
        return {**stored, f"{stem}scales": scales.T}, stands_for

    return code


def _scales_and_zeros(groups: torch.Tensor, top: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        return (torch.maximum(-low, high) * 2 / top).to(torch.float16), torch.full(low.shape, (top + 1) // 2)
    scales = ((high - low) / top).to(torch.float16)
    return scales, (-low / scales.float()).round().clamp(1, top).long()
