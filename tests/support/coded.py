"""Writes checkpoints in 8 and 4 bits as they are published, and the float32 checkpoint that each stands for.

What a matrix stands for is computed here from the codes that were chosen, not by the code under test.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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


def _compressed_tensors(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        **more,
    }


def _integers(bits: int, group: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    strategy = "channel" if group is None else "group"
    return {"type": "int", "num_bits": bits, "strategy": strategy, "group_size": group, "symmetric": symmetric}


_FP8_SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
FORMATS: dict[str, tuple[Coder, dict[str, Any]]] = {
    "fp8 block": (fp8(128), _FP8_SETTINGS),
    "fp8 small blocks": (fp8(16, dtype=torch.bfloat16), {**_FP8_SETTINGS, "weight_block_size": [16, 16]}),
    "fp8 channel": (fp8(None, "_scale"), _compressed_tensors({"type": "float", "num_bits": 8, "strategy": "channel"})),
    "mxfp8": (mxfp8, _FP8_SETTINGS),
    "fp4 of DeepSeek": (fp4_of_deepseek, {**_FP8_SETTINGS, "expert_dtype": "fp4"}),
    "int4 group 32": (int4(32, True), _compressed_tensors(_integers(4, 32))),
    "int4 group 32 asymmetric": (int4(32, False, torch.float16), _compressed_tensors(_integers(4, 32, False))),
    "int8 packed": (int8(True), _compressed_tensors(_integers(8))),
    "int8": (int8(False), _compressed_tensors(_integers(8), format="int-quantized")),
    "int8 asymmetric": (
        int8_with_zeros,
        _compressed_tensors(_integers(8, symmetric=False), format="int-quantized"),
    ),
    "mxfp4": (
        mxfp4_packed,
        _compressed_tensors({"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}),
    ),
    "nvfp4": (nvfp4(False), _compressed_tensors({"type": "float", "num_bits": 4, "strategy": "tensor_group"})),
    "gptq": (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
    "gptq asymmetric v2": (
        gptq(4, 32, v2=True, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "gptq 8 bits in one group": (
        gptq(8, None),
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True},
    ),
    "awq": (awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "nvfp4 of ModelOpt": (nvfp4(True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
}
"""By name: what codes a matrix, and the quantization_config."""


def rewrite(plain: Path, coded: Path, name: str, is_coded: Callable[[str], bool]) -> Path:
    """Copies a float32 checkpoint to `coded` in a format, and makes the plain one what that stands for.

    Args:
        plain: A checkpoint in one file. Its matrices become those that the codes stand for.
        coded: Where the coded one goes.
        name: Of a row of FORMATS.
        is_coded: Which matrices are coded, by their names.
    """
    code, settings = FORMATS[name]
    return rewrite_with(
        plain, coded, settings, lambda tensor, weight: code(tensor, weight) if is_coded(tensor) else None
    )


def rewrite_with(
    plain: Path,
    coded: Path,
    settings: dict[str, Any],
    code: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor] | None],
) -> Path:
    """The same with any coder, which returns None for tensors that stay as they are."""
    file = plain / "model.safetensors"
    tensors = load_file(file)
    stored: Tensors = {}
    for name, tensor in tensors.items():
        result = code(name, tensor) if tensor.ndim >= 2 else None
        if result is None:
            stored[name] = tensor
        else:
            stored.update({key: value.contiguous() for key, value in result[0].items()})
            tensors[name] = result[1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    shutil.copytree(plain, coded, ignore=lambda _, names: [each for each in names if each.endswith(".safetensors")])
    save_file(stored, coded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return coded
