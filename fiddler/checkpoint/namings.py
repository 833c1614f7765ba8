"""How families name the tensors of their experts: one row per naming."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["gate", "up", "down", "gate_up", "gate_up_bias", "up_bias", "down_bias", "factor_gate"]


@dataclass(frozen=True, slots=True)
class Naming:
    """One way to name experts: a row of the table.

    `pattern` matches a whole tensor name and has the groups `prefix` (the layer's experts), `layer`, `part` and, where
    every expert has tensors of its own, `expert`. Without it one tensor holds all experts of the layer. A group `stack`
    that says decoder counts its layers on from the encoder's. `parts` says what each part is. `interleaved_in` lists
    the model types whose fused gate and up alternate, gate first. `expert_name` is how an expert's number is written,
    and `suffix` what follows its part.
    """

    description: str
    pattern: re.Pattern[str]
    parts: Mapping[str, Role]
    interleaved_in: frozenset[str] = frozenset()
    expert_name: str = "{}"
    suffix: str = ".weight"


_LAYER = r"(?:[\w.]+\.)?layers\.(?P<layer>\d{1,9})"


def _each(block: str, part: str) -> re.Pattern[str]:
    """The pattern of namings in which every expert has tensors of its own."""
    return re.compile(rf"(?P<prefix>{_LAYER}\.{block}experts)\.(?P<expert>\d{{1,9}})\.(?P<part>{part})\.weight")


NAMINGS: Final = (
    Naming(
        "layers.N.block_sparse_moe.experts.M.{w1,w3,w2}.weight",
        _each(r"(?:\w+\.)?", "w1|w2|w3"),
        {"w1": "gate", "w3": "up", "w2": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.M.{gate_proj,up_proj,down_proj}.weight",
        # Nemotron-H calls its blocks "mixer"; its experts have no gate and are the next row's
        _each(r"(?!mixer\.)\w+\.", "gate_proj|up_proj|down_proj"),
        {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"},
    ),
    Naming(
        "layers.N.mixer.experts.M.{up_proj,down_proj}.weight",
        _each(r"mixer\.", "up_proj|down_proj"),
        {"up_proj": "up", "down_proj": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.{gate_up_proj,down_proj}",
        re.compile(
            rf"(?P<prefix>{_LAYER}\.(?:\w+\.)?experts)\.(?P<part>(?:gate_up_proj|down_proj)(?:_bias)?)(?:\.weight)?"
        ),
        {
            "gate_up_proj": "gate_up",
            "down_proj": "down",
            "gate_up_proj_bias": "gate_up_bias",
            "down_proj_bias": "down_bias",
        },
        interleaved_in=frozenset({"gpt_oss"}),
    ),
    Naming(
        "layers.N.mlp.experts.{fc1,fc2}.weight",
        re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>fc1|fc2)\.weight"),
        {"fc1": "gate_up", "fc2": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.{w13_weight,w2_weight}",
        re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>w13_weight|w2_weight)"),
        {"w13_weight": "gate_up", "w2_weight": "down"},
        interleaved_in=frozenset({"inkling_mm_model", "inkling2", "inkling2_text"}),
    ),
    Naming(
        "layers.N.block_sparse_moe.{input_linear,output_linear}.weight",
        re.compile(rf"(?P<prefix>{_LAYER}\.block_sparse_moe)\.(?P<part>input_linear|output_linear)\.weight"),
        {"input_linear": "gate_up", "output_linear": "down"},
    ),
    Naming(
        "layers.N.mlp.{input_linear,output_linear}.weight",
        re.compile(rf"(?P<prefix>{_LAYER}\.mlp)\.(?P<part>input_linear|output_linear)\.weight"),
        {"input_linear": "gate_up", "output_linear": "down"},
    ),
    Naming(
        "blocks.N.ffn.experts.mlp.{w1,v1,w2}",
        re.compile(r"(?P<prefix>(?:[\w.]+\.)?blocks\.(?P<layer>\d{1,9})\.ffn\.experts\.mlp)\.(?P<part>w1|v1|w2)"),
        {"w1": "gate", "v1": "up", "w2": "down"},
    ),
    Naming(
        "{encoder,decoder}.block.N.layer.L.mlp.experts.expert_M.{wi,wo}.weight",
        re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?(?P<stack>encoder|decoder)\.block\.(?P<layer>\d{1,9})\.layer\.\d\.mlp\.experts)"
            r"\.expert_(?P<expert>\d{1,9})\.(?P<part>wi|wo)\.weight"
        ),
        {"wi": "up", "wo": "down"},
        expert_name="expert_{}",
    ),
    Naming(
        "{encoder,decoder}.layers.N.ffn.experts.expert_M.{fc1,fc2}.{weight,bias}",
        re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?(?P<stack>encoder|decoder)\.layers\.(?P<layer>\d{1,9})\.ffn\.experts)"
            r"\.expert_(?P<expert>\d{1,9})\.(?P<part>fc[12]\.(?:weight|bias))"
        ),
        {"fc1.weight": "up", "fc1.bias": "up_bias", "fc2.weight": "down", "fc2.bias": "down_bias"},
        expert_name="expert_{}",
        suffix="",
    ),
    Naming(
        "layers.N.mlp.experts.{wi_gate,wi_up,wo}",
        re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>wi_gate|wi_up|wo)"),
        {"wi_gate": "factor_gate", "wi_up": "up", "wo": "down"},
    ),
)
