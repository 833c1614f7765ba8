"""Coded checkpoints whose experts are in tensors of their own, fused, or fused with gate and up alternating.

Each comes with its plain form in float32, as transformers loads it, at `plain` next to it.
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch

from tests.support import checkpoints
from tests.support.coded import FORMATS, rewrite, rewrite_with
from tests.support.coders import Coder, Tensors, mxfp4_blocks
from tests.support.families import tiny
from tests.support.tampering import edit_tensors

Layout = Literal["separate", "fused", "interleaved", "transposed"]

GPT_OSS = "mxfp4 of gpt-oss"
"""The one format that has no form with a tensor per matrix."""
_BLOCKS = ("fp8 block", "fp8 small blocks")
_TRANSPOSED = ("fp8 channel", "mxfp8", "int8", "nvfp4 of ModelOpt")
"""In stacks [experts, inputs, outputs], with gate and up alternating."""
SUPPORTED: tuple[tuple[Layout, str], ...] = (
    *(("separate", name) for name in FORMATS),
    *(("fused", name) for name in (*FORMATS, GPT_OSS)),
    *(("interleaved", name) for name in (*FORMATS, GPT_OSS) if name not in _BLOCKS),
    *(("transposed", name) for name in _TRANSPOSED),
)
"""Layouts and formats that go together; the others are refused."""
_SIZES: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 96, "intermediate_size": 96}
_OF_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def write(layout: Layout, name: str, directory: Path) -> Path:
    """Writes both; returns the coded one.

    Args:
        layout: Of its experts.
        name: Of a row of FORMATS, or GPT_OSS.
        directory: Of both.
    """
    if layout == "separate":
        plain = checkpoints.write("qwen3_moe", directory / "plain", eos_token_id=None, **_SIZES)
        return rewrite(plain, directory / "coded", name, lambda tensor: "_proj." in tensor)
    if layout == "fused":
        return _write_fused(name, directory)
    return _write_interleaved(name, directory, transposed=layout == "transposed")


def _coder(name: str) -> tuple[Coder, dict[str, Any], str]:
    """Of a stack of matrices, the settings, and what follows the name of a stack."""
    if name == GPT_OSS:
        return mxfp4_blocks, {"quant_method": "mxfp4"}, ""
    code, settings = FORMATS[name]
    # published are both
    return _stacked(code), settings, "" if name == "fp8 block" else ".weight"


def _stacked(code: Coder) -> Coder:
    def code_all(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        each = [code(name, matrix) for matrix in weight]
        stored = {key: torch.stack([tensors[key] for tensors, _ in each]) for key in each[0][0]}
        return stored, torch.stack([stands_for for _, stands_for in each])

    return code_all


def _write_fused(name: str, directory: Path) -> Path:
    """Transformers reads such models with a tensor per matrix, too: the plain form has those."""
    code, settings, suffix = _coder(name)
    plain = checkpoints.write("qwen3_moe", directory / "plain", eos_token_id=None, **_SIZES)
    stored: dict[str, Tensors] = {}

    def make_plain(tensors: Tensors) -> Tensors:
        found = [match for match in map(_OF_EXPERT.fullmatch, tensors) if match]
        for prefix in {match[1] for match in found}:
            numbers = range(1 + max(int(match[2]) for match in found if match[1] == prefix))

            def stack(part: str, prefix: str = prefix, numbers: range = numbers) -> torch.Tensor:
                return torch.stack([tensors[f"{prefix}.{number}.{part}_proj.weight"] for number in numbers])

            gate_ups, gate_up = code(f"{prefix}.gate_up_proj{suffix}", torch.cat((stack("gate"), stack("up")), dim=1))
            downs, down = code(f"{prefix}.down_proj{suffix}", stack("down"))
            gate, up = gate_up.chunk(2, dim=1)
            for number in numbers:
                for part, weights in (("gate", gate), ("up", up), ("down", down)):
                    tensors[f"{prefix}.{number}.{part}_proj.weight"] = weights[number].contiguous()
            stored[f"{prefix}.0.gate_proj.weight"] = {**gate_ups, **downs}
        return tensors

    edit_tensors(plain, make_plain)

    def take(tensor: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor] | None:
        if not _OF_EXPERT.fullmatch(tensor):
            return None
        return stored.get(tensor, {}), weight

    return rewrite_with(plain, directory / "coded", settings, take)


def _write_interleaved(name: str, directory: Path, transposed: bool) -> Path:
    code, settings, suffix = _coder(name)
    plain = tiny.write("gpt_oss", directory / "plain", config={"hidden_size": 64, "intermediate_size": 96})

    def code_experts(tensor: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor] | None:
        if not tensor.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return None
        if transposed and name == "nvfp4 of ModelOpt":
            stored, stands_for = code(f"{tensor}_weight", weight.mT.contiguous())
            stored[tensor] = stored.pop(f"{tensor}_weight")
        else:
            stored, stands_for = code(tensor + suffix, weight.mT.contiguous())
        if transposed:
            stored = {key: plane.mT if plane.ndim == 3 else plane for key, plane in stored.items()}
        return stored, stands_for.mT.contiguous()

    return rewrite_with(plain, directory / "coded", settings, code_experts)
