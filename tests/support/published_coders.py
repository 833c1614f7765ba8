"""Tensors coded as published checkpoints store them: stacked, transposed, taken apart, under other names."""

import re

import torch

from tests.support import coders
from tests.support.coders import Coder, Tensors, mxfp4_blocks


def stack_of(code: Coder, *, transposed: bool = False) -> Coder:
    """Codes each matrix of a stack by itself."""

    def code_all(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        each = [code(name, matrix) for matrix in (weight.mT if transposed else weight)]
        stored = {key: torch.stack([tensors[key] for tensors, _ in each]) for key in each[0][0]}
        stands_for = torch.stack([matrix for _, matrix in each])
        if not transposed:
            return stored, stands_for
        return {key: plane.mT if plane.ndim == 3 else plane for key, plane in stored.items()}, stands_for.mT

    return code_all


def turned(code: Coder) -> Coder:
    """Stores the planes of a stack transposed."""

    def code_and_turn(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        stored, stands_for = code(name, weight)
        return {key: plane.mT for key, plane in stored.items()}, stands_for

    return code_and_turn


def split(code: Coder) -> Coder:
    """Gives each expert of a transposed stack of gate and up, or of down, tensors of its own."""

    def code_each(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        stored: Tensors = {}
        stands_for = torch.empty_like(weight)
        prefix, part = name.rsplit(".", 1)
        parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else ("down_proj",)
        for number, matrix in enumerate(weight.mT):
            coded_parts = []
            for each, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                tensors, values = code(f"{prefix}.{number}.{each}.weight", rows.contiguous())
                stored.update(tensors)
                coded_parts.append(values)
            stands_for[number] = torch.cat(coded_parts).mT
        return stored, stands_for

    return code_each


def renamed(code: Coder, pattern: str, replacement: str) -> Coder:
    """Renames what is stored."""

    def code_and_rename(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        stored, stands_for = code(name, weight)
        return {re.sub(pattern, replacement, key): tensor for key, tensor in stored.items()}, stands_for

    return code_and_rename


def modelopt_stack(code: Coder, transposed: bool = False) -> Coder:
    """With ModelOpt's names for stacks: without a module of their own."""
    named = renamed(stack_of(code, transposed=transposed), r"_proj_weight$", "_proj")
    return lambda name, weight: named(f"{name}_weight", weight)


def one_scale(suffix: str) -> Coder:
    """FP8 with one scale for a tensor, of whatever shape, and one of activations."""

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        stem = name.removesuffix("weight") if name.endswith(".weight") else f"{name}_"
        stored = {name: codes, f"{stem}{suffix}": scale, f"{stem}input_scale": torch.tensor(1.0)}
        return stored, codes.float() * scale

    return code


def of_fbgemm(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Transformers' FbgemmFp8Config of Llama-4: a scale per output, those of down as a column."""
    scales = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scales.mT if name.endswith("down_proj") else scales}, codes.float() * scales


def blocks_of_modelopt(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    stored, stands_for = coders.fp8(128, "_scale")(name, weight)
    stored[f"{name}_scale"] = stored[f"{name}_scale"][:, None, :, None]
    return stored, stands_for


def mixed_gptq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """GPTQ with 8 bits in larger groups for the projections down."""
    code = coders.gptq(8, 96) if "down_proj" in name and weight.shape[1] == 96 else coders.gptq(4, 32)
    return code(name, weight)


def with_scales_of_cache(stored: Tensors) -> Tensors:
    scales = {f"model.layers.0.self_attn.{name}": torch.tensor(1.0) for name in ("k_proj.k_scale", "v_proj.v_scale")}
    return stored | scales


def with_biases_of_zero(stored: Tensors) -> Tensors:
    """Adds the biases that AutoGPTQ adds."""
    words = [name for name in stored if name.endswith(".qweight")]
    biases = {name.replace("qweight", "bias"): torch.zeros(stored[name].shape[1]) for name in words}
    return stored | biases


def of_gpt_oss(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """MXFP4 of a stack that the family stores transposed."""
    stored, stands_for = mxfp4_blocks(name, weight.mT.contiguous())
    return stored, stands_for.mT.contiguous()
