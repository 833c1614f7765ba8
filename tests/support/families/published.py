"""Tiny checkpoints in the 8- and 4-bit formats that families are published in, next to the float32 that they stand for.

Which tensors are coded, and what their scales are called, is as in the published checkpoints of the family. Blocks of
FP8 scales are smaller, so that a tiny matrix has several and partial ones at its edges.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from gpu_service.models.families import VERIFIED
from tests.support import coded, coders
from tests.support.families import tiny

_BLOCK: Final = 16
_DENSE: Final = r"_proj|_proj_with_mqa|\.indexer\.wq_b|\.indexer\.wk"
_EXPERTS_OF_V4: Final = re.compile(r".*\.ffn\.experts\.\d+\.w[123]\.weight")
_DENSE_OF_V4: Final = re.compile(r".*(\.attn\.w(q_a|q_b|kv|o_a|o_b)|\.indexer\.wq_b|\.shared_experts\.w[123])\.weight")
_FP8: Final[dict[str, Any]] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [_BLOCK, _BLOCK],
}


def _only(pattern: str, coder: coders.Coder) -> Callable[[str, torch.Tensor], Any]:
    """Codes matrices of such names; others stay as they are."""
    return lambda name, weight: coder(name, weight) if re.fullmatch(rf".*({pattern})\.weight", name) else None


def _of_gpt_oss(name: str, weight: torch.Tensor) -> tuple[coders.Tensors, torch.Tensor] | None:
    """Experts, which are transposed in the plain form only."""
    if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        return None
    stored, stands_for = coders.mxfp4_blocks(name, weight.transpose(1, 2))
    return stored, stands_for.transpose(1, 2)


def _of_deepseek_v4(name: str, weight: torch.Tensor) -> tuple[coders.Tensors, torch.Tensor] | None:
    if _EXPERTS_OF_V4.fullmatch(name):
        return coders.fp4_of_deepseek(name, weight)
    if not _DENSE_OF_V4.fullmatch(name):
        return None
    stored, stands_for = coders.fp8(_BLOCK, "_scale", torch.float8_e8m0fnu)(name, weight)
    return {key.replace(".weight_scale", ".scale"): tensor for key, tensor in stored.items()}, stands_for


_INT4: Final[dict[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "type": "int",
                "num_bits": 4,
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
            },
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
}
_ROUTED_EXPERTS: Final = _only(r"\.experts\.\d+\.\w+_proj", coders.int4(32, True))


@dataclass(frozen=True, slots=True)
class _Published:
    """How a family's published checkpoints are coded."""

    settings: dict[str, Any]
    """Its quantization_config."""
    code: Callable[[str, torch.Tensor], tuple[coders.Tensors, torch.Tensor] | None]
    section: str | None = None
    """Of config.json that holds the quantization_config; None: the top level."""
    built_as: str | None = None
    """The family of transformers that reads the plain form, if it does not know this one."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Names that transformers writes otherwise than they are published: regular expressions and their replacements."""


PUBLISHED: Final = {
    "deepseek_v3": _Published(_FP8, _only(rf"(?<!weights)({_DENSE})", coders.fp8(_BLOCK))),
    "deepseek_v32": _Published({**_FP8, "scale_fmt": "ue8m0"}, _only(rf"(?<!weights)({_DENSE})", coders.fp8(_BLOCK))),
    "deepseek_v4": _Published(
        {**_FP8, "scale_fmt": "ue8m0"},
        _of_deepseek_v4,
        renamed=((r"model\.embed_tokens", "embed"), (r"model\.hc_head\.hc_", "hc_head_"), (r"model\.", "")),
    ),
    "gpt_oss": _Published(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}, _of_gpt_oss
    ),
    "kimi_k2": _Published(_INT4, _ROUTED_EXPERTS, built_as="deepseek_v3"),
    "kimi_k25": _Published(
        _INT4,
        _ROUTED_EXPERTS,
        section="text_config",
        renamed=(
            (r"language_model\.model\.blocks", "language_model.model.layers"),
            (r"model\.mm_projector", "mm_projector"),
            (r"vision_tower\.encoder\.patch_embed", "vision_tower.patch_embed"),
        ),
    ),
    "mimo_v2_flash": _Published(
        {**_FP8, "ignored_layers": ["model.layers.0.self_attn.o_proj"]}, _only(r"(?<!\.o)_proj", coders.fp8(_BLOCK))
    ),
    "minimax_m2": _Published(
        {**_FP8, "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
        _only(r"_proj|\.w[123]", coders.fp8(_BLOCK)),
    ),
}
"""By model_type. A test compares the keys with the families of the table that have a format."""


def write(family: str, directory: Path) -> tuple[Path, Path]:
    """Writes a checkpoint as it is published, and one in float32 that transformers reads.

    Returns:
        The two directories, in this order; the same one twice if the family is published plain.
    """
    if not VERIFIED[family].published_as:
        plain = tiny.write(family, directory / "plain")
        return plain, plain
    published = PUBLISHED[family]
    plain = tiny.write(published.built_as or family, directory / "plain")
    if published.renamed:
        _rename(plain / "model.safetensors", published.renamed)
    path = coded.rewrite_with(plain, directory / "published", published.settings, published.code)
    config = json.loads((path / "config.json").read_text())
    config["model_type"] = family
    if published.section is not None:
        config[published.section]["quantization_config"] = config.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(config))
    return path, plain


def _rename(file: Path, renamed: tuple[tuple[str, str], ...]) -> None:
    tensors = load_file(file)
    for pattern, replacement in renamed:
        tensors = {re.sub(f"^{pattern}", replacement, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
