"""Small checkpoints that are coded, named and configured as published ones are: a row for each kind of them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support import coded, coders
from tests.support.coders import Coder, Tensors
from tests.support.families import tiny
from tests.support.published_coders import (
    blocks_of_modelopt,
    mixed_gptq,
    modelopt_stack,
    of_fbgemm,
    of_gpt_oss,
    one_scale,
    split,
    stack_of,
    turned,
    with_biases_of_zero,
    with_scales_of_cache,
)
from tests.support.tampering import edit_tensors

_CODED = re.compile(r".*\.(?:\w+_proj|w[123]|input_linear|output_linear)(?:\.weight)?|.*experts\.(?:gate_up|down)_proj")
_SIZES = {"hidden_size": 64, "moe_intermediate_size": 96, "intermediate_size": 96}
Code = Callable[[str, torch.Tensor], Tensors]


@dataclass(frozen=True)
class Published:
    """A row of docs/formats.md, and how its small checkpoint is written."""

    models: str
    """Published checkpoints of this kind."""
    stored: str
    """How their experts are stored."""
    settings: Mapping[str, Any]
    """The quantization_config, with smaller groups."""
    family: str
    code: Coder
    """Of a tensor of an expert, or of a stack of them, as the family stores it in bfloat16."""
    in_place: bool = True
    """Whether experts are computed where they are stored."""
    sizes: Mapping[str, Any] = field(default_factory=lambda: _SIZES)
    more: Callable[[Tensors], Tensors] = dict
    """Adds tensors to what is stored."""


def _compressed(kind: str, bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": kind, "num_bits": bits, **weights}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_MODELOPT = {"quant_method": "modelopt", "producer": {"name": "modelopt"}, "ignore": ["lm_head"]}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
_AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "autoround_version": "0.6"}
_ASYMMETRIC = {"strategy": "group", "group_size": 32, "symmetric": False}

PUBLISHED: dict[str, Published] = {
    "FP8 in blocks": Published(
        "Qwen3-30B-A3B-FP8, Qwen3-Next-80B-A3B-FP8, MiniMax-M2",
        "a tensor per matrix",
        _FP8,
        "qwen3_moe",
        coders.fp8(128, dtype=torch.bfloat16),
    ),
    "FP8 in blocks, latent attention": Published(
        "DeepSeek-V3.1, Kimi-K2-Instruct", "a tensor per matrix", _FP8, "deepseek_v3", coders.fp8(128)
    ),
    "FP8 in blocks, stacked and transposed": Published(
        "Qwen3-VL-30B-A3B as its stacks are",
        "stacks [experts, inputs, outputs]",
        _FP8,
        "qwen3_vl_moe",
        turned(stack_of(coders.fp8(128))),
        in_place=False,
        sizes={"text_config": {"hidden_size": 64, "moe_intermediate_size": 96}},
    ),
    "FP8 with one scale per matrix": Published(
        "Mixtral-8x7B-Instruct-v0.1-FP8 of AutoFP8",
        "a tensor per matrix",
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "mixtral",
        one_scale("weight_scale"),
    ),
    "FP8 of fbgemm": Published(
        "Llama-4 as transformers' FbgemmFp8Config writes it",
        "stacks [experts, inputs, outputs]",
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        "llama4_text",
        of_fbgemm,
        in_place=False,
    ),
    "FP8 of compressed-tensors": Published(
        "GLM-4.5-Air-FP8",
        "a tensor per matrix",
        _compressed("float", 8, strategy="channel"),
        "glm4_moe",
        coders.fp8(None, "_scale", torch.bfloat16),
    ),
    "FP8 of compressed-tensors, taken apart": Published(
        "Llama-4-Scout-17B-16E-Instruct-FP8-dynamic",
        "a tensor per matrix, though the family has stacks",
        _compressed("float", 8, strategy="channel"),
        "llama4_text",
        split(coders.fp8(None, "_scale", torch.bfloat16)),
    ),
    "FP8 of compressed-tensors, stacked": Published(
        "granite-4.0-h-small-FP8",
        "stacks [experts, outputs, inputs]",
        _compressed("float", 8, strategy="channel"),
        "granitemoe",
        stack_of(coders.fp8(None, "_scale", torch.bfloat16)),
    ),
    "FP8 of ModelOpt, stacked": Published(
        "Llama-4-Scout-17B-16E-Instruct-FP8 of nvidia",
        "stacks [experts, inputs, outputs], one scale for a stack",
        {**_MODELOPT, "quant_algo": "FP8"},
        "llama4_text",
        one_scale("weight_scale"),
        in_place=False,
    ),
    "FP8 in blocks of ModelOpt": Published(
        "checkpoints in FP8_PB_WO",
        "a tensor per matrix, scales with 4 dimensions",
        {**_MODELOPT, "quant_algo": "FP8_PB_WO"},
        "qwen3_moe",
        blocks_of_modelopt,
    ),
    "NVFP4 of ModelOpt": Published(
        "Qwen3-30B-A3B-FP4, DeepSeek-R1-0528-FP4",
        "a tensor per matrix, scales of the KV cache",
        {**_MODELOPT, "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        "qwen3_moe",
        coders.nvfp4(True),
        more=with_scales_of_cache,
    ),
    "NVFP4 of ModelOpt, stacked": Published(
        "Llama-4-Scout-17B-16E-Instruct-FP4",
        "stacks [experts, inputs / 2, outputs]",
        {**_MODELOPT, "quant_algo": "NVFP4"},
        "llama4_text",
        modelopt_stack(coders.nvfp4(True), transposed=True),
        in_place=False,
    ),
    "NVFP4 of compressed-tensors": Published(
        "checkpoints of llm-compressor in NVFP4A16",
        "a tensor per matrix",
        _compressed("float", 4, strategy="tensor_group", group_size=16),
        "qwen3_moe",
        coders.nvfp4(False),
    ),
    "MXFP4 of gpt-oss": Published(
        "gpt-oss-20b, gpt-oss-120b",
        "stacks, gate and up alternating",
        {"quant_method": "mxfp4"},
        "gpt_oss",
        of_gpt_oss,
    ),
    "MXFP8": Published(
        "MiniMax-M3-MXFP8", "a tensor per matrix", {**_FP8, "quant_method": "mxfp8"}, "qwen3_moe", coders.mxfp8
    ),
    "int4 of compressed-tensors": Published(
        "Kimi-K2-Thinking, W4A16 of llm-compressor",
        "a tensor per matrix",
        _compressed("int", 4, strategy="group", group_size=32, symmetric=True),
        "deepseek_v3",
        coders.int4(32, symmetric=True),
    ),
    "int4 of compressed-tensors, asymmetric": Published(
        "Qwen3-Next-80B-A3B in W4A16_ASYM, as AWQ of llm-compressor",
        "a tensor per matrix, with zero points",
        _compressed("int", 4, **_ASYMMETRIC),
        "qwen3_next",
        coders.int4(32, symmetric=False),
    ),
    "int4 of compressed-tensors, asymmetric, stacked": Published(
        "W4A16_ASYM of compressed-tensors' own stacks",
        "stacks [experts, outputs, inputs / 8], with zero points",
        _compressed("int", 4, **_ASYMMETRIC),
        "granitemoe",
        stack_of(coders.int4(32, symmetric=False)),
    ),
    "int8 of compressed-tensors": Published(
        "W8A8 and W8A16 of llm-compressor",
        "a tensor per matrix",
        _compressed("int", 8, strategy="channel", symmetric=True),
        "qwen3_moe",
        coders.int8(False),
    ),
    "int8 of compressed-tensors, asymmetric": Published(
        "W8A16 of llm-compressor, asymmetric",
        "a tensor per matrix, with zero points",
        _compressed("int", 8, strategy="channel", symmetric=False),
        "qwen3_moe",
        coders.int8_with_zeros,
        in_place=False,
    ),
    "GPTQ": Published(
        "Qwen3-30B-A3B-GPTQ-Int4, Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4",
        "a tensor per matrix",
        _GPTQ,
        "qwen3_moe",
        coders.gptq(4, 32),
        in_place=False,
    ),
    "GPTQ of AutoGPTQ": Published(
        "Mixtral-8x7B-Instruct-v0.1-GPTQ of TheBloke",
        "a tensor per matrix, in one group, with biases of zero",
        {**_GPTQ, "group_size": -1, "desc_act": True},
        "mixtral",
        coders.gptq(4, None),
        in_place=False,
        more=with_biases_of_zero,
    ),
    "GPTQ with bits per module": Published(
        "checkpoints named Int4-Int8Mix, `dynamic` of GPTQModel",
        "a tensor per matrix, 4 or 8 bits",
        {**_GPTQ, "dynamic": {r"+:.*down_proj.*": {"bits": 8, "group_size": 96}}},
        "qwen3_moe",
        mixed_gptq,
        in_place=False,
    ),
    "AWQ": Published(
        "Mixtral-8x7B-Instruct-v0.1-AWQ of TheBloke",
        "a tensor per matrix",
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "modules_to_not_convert": ["gate"]},
        "mixtral",
        coders.awq(32),
        in_place=False,
    ),
    "AutoRound as GPTQ": Published(
        "Qwen3-30B-A3B-Instruct-2507-int4-AutoRound of Intel",
        "a tensor per matrix",
        {
            **_AUTO_ROUND,
            "packing_format": "auto_round:auto_gptq",
            "extra_config": {"model.layers.0.mlp.gate": {"bits": 16}},
        },
        "qwen3_moe",
        coders.gptq(4, 32),
        in_place=False,
    ),
    "AutoRound": Published(
        "older checkpoints of AutoRound",
        "a tensor per matrix, zero points as they are",
        {**_AUTO_ROUND, "sym": False, "packing_format": "auto_round"},
        "qwen3_moe",
        coders.gptq(4, 32, v2=True, symmetric=False),
        in_place=False,
    ),
    "AutoRound as AWQ": Published(
        "checkpoints of AutoRound for AWQ's kernels",
        "a tensor per matrix",
        {**_AUTO_ROUND, "packing_format": "auto_round:auto_awq"},
        "qwen3_moe",
        coders.awq(32),
        in_place=False,
    ),
}
"""By kind, as docs/formats.md names them."""


def write(kind: str, directory: Path) -> Path:
    """Writes the small checkpoint of a row, and at `plain` beside it what it stands for; returns the coded one."""
    row = PUBLISHED[kind]
    plain = tiny.write(row.family, directory / "plain", config=dict(row.sizes))
    experts = re.compile(r".*\.(?:experts\..*|(?:in|out)put_linear\.weight)")

    def code(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor] | None:
        is_coded = _CODED.fullmatch(name) and (weight.ndim == 3 or experts.fullmatch(name))
        return row.code(name, weight) if is_coded else None

    result = coded.rewrite_with(plain, directory / "coded", dict(row.settings), code)
    if row.more is not dict:
        edit_tensors(result, row.more)
    return result
