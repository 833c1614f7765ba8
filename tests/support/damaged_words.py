"""Damaged checkpoints in formats of packed words that are repacked: GPTQ, AWQ and AutoRound."""

import torch

from fiddler.checkpoint import errors
from tests.support.coded_damage import (
    EXPERT,
    UNSUPPORTED,
    Case,
    first,
    settings,
    stacked,
)
from tests.support.damage import add, after, drop, replace

CASES: dict[str, Case] = {
    "GPTQ with 2 bits": Case("gptq", settings(bits=2), UNSUPPORTED, ("config.json", ".bits", "2 bits", "4 and 8")),
    "GPTQ with 3 bits": Case("gptq", settings(bits=3), UNSUPPORTED, ("config.json", ".bits", "3 bits", "4 and 8")),
    "GPTQ in the order of activations by config.json": Case(
        "gptq", settings(desc_act=True), UNSUPPORTED, ("config.json", ".desc_act", "without desc_act")
    ),
    "GPTQ in the order of activations by its tensors": Case(
        "gptq",
        replace(f"{EXPERT}.g_idx", lambda order: order.flip(0).contiguous()),
        UNSUPPORTED,
        ("model.safetensors", EXPERT, "g_idx", "without desc_act"),
        is_read=True,
    ),
    "GPTQ with several matrices in the tensor of an expert": Case(
        "gptq", stacked, errors.ShapeError, (f"'{EXPERT}.weight'", "[2, 64, 96]", "it must be [64, 96]")
    ),
    "GPTQ with other groups": Case(
        "gptq", settings(group_size=64), errors.ShapeError, ("down_proj", "96 inputs in groups of 64", "group_size")
    ),
    "GPTQ without zero points": Case(
        "gptq", drop(f"{EXPERT}.qzeros"), errors.MissingTensorError, (EXPERT, "lacks", "qzeros")
    ),
    "GPTQ in halves of words": Case(
        "gptq",
        replace(f"{EXPERT}.qweight", lambda words: words.to(torch.int16)),
        UNSUPPORTED,
        (f"'{EXPERT}.qweight'", "I16", "I32 is due"),
    ),
    "GPTQ with a scale that is not a number": Case(
        "gptq", replace(f"{EXPERT}.scales", first(torch.nan)), UNSUPPORTED, (EXPERT, "scale of nan"), is_read=True
    ),
    "GPTQ with 8 bits in config.json": Case(
        "gptq",
        settings(bits=8),
        errors.ShapeError,
        ("model.safetensors", "48 inputs in groups of 32", "published with"),
    ),
    "GPTQ that config.json calls fp8": Case(
        "gptq", settings(quant_method="fp8"), UNSUPPORTED, ("qweight", "as GPTQ or AWQ weights do", "the format fp8")
    ),
    "AWQ gemv": Case("awq", settings(version="gemv"), UNSUPPORTED, ("config.json", ".version", "gemv", "gemm is")),
    "AWQ with 3 bits": Case("awq", settings(bits=3), UNSUPPORTED, ("config.json", ".bits", "3 bits", "4 bits are")),
    "AWQ with other groups": Case(
        "awq", settings(group_size=40), errors.ShapeError, ("96 inputs in groups of 40", "group_size")
    ),
    "AWQ with a scale that is not a number": Case(
        "awq", replace(f"{EXPERT}.scales", first(torch.inf)), UNSUPPORTED, (EXPERT, "scale of inf"), is_read=True
    ),
    "AWQ that config.json calls GPTQ": Case(
        "awq", settings(quant_method="gptq"), errors.ShapeError, ("model.safetensors", "scales", "must be")
    ),
    "MLX": Case(
        "gptq", settings(quant_method=None), UNSUPPORTED, ("config.json", "MLX's format is not served", "served are")
    ),
    "GPTQ in Marlin's form": Case(
        "gptq", settings(checkpoint_format="marlin"), UNSUPPORTED, ("GPTQ in the form marlin is not served",)
    ),
    "GPTQ with 2 bits in a module": Case(
        "gptq",
        after(
            settings(dynamic={"+:.*down_proj": {"bits": 2}}),
            replace(f"{EXPERT}.qzeros", lambda zeros: zeros[:, :4].clone()),
        ),
        UNSUPPORTED,
        (f"'{EXPERT}.qweight' with 2 bits", "4 and 8 are supported"),
    ),
    "GPTQ in groups of nothing": Case(
        "gptq", settings(group_size=0), errors.ShapeError, ("inputs in groups of 0", "group_size")
    ),
    "GPTQ with groups in a module that config.json does not name": Case(
        "gptq",
        after(
            settings(dynamic={"+:.*down_proj": {"bits": 4}}),
            replace(f"{EXPERT}.qzeros", lambda zeros: zeros[:1].clone()),
        ),
        errors.ShapeError,
        (EXPERT, "by its shape and quantization_config"),
    ),
    "GPTQ with biases that are not zero": Case(
        "gptq",
        add("model.layers.1.mlp.experts.3.w1.bias", torch.ones(3)),
        UNSUPPORTED,
        ("experts with biases or quantisation scales are not supported",),
    ),
    "AutoRound in an unknown packing": Case(
        "gptq",
        settings(quant_method="auto-round", packing_format="mlx"),
        UNSUPPORTED,
        ("AutoRound's mlx is not served", "auto_round:auto_gptq"),
    ),
    "AutoRound with rotations": Case(
        "gptq",
        settings(quant_method="auto-round", spinquant_config={"online_r1_rotation": True}),
        UNSUPPORTED,
        ("config.json", "rotations of weights or activations are not served"),
    ),
}
