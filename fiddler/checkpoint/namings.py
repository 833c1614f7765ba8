"""How families name the tensors of their experts, and how those tensors are laid out: one row for each naming.

`claims` applies the table to the tensors of a checkpoint; `layouts.build` turns what a row claims into views. This file
knows names and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal

Layout = Literal["separate", "fused", "concatenated", "stacked"]
"""How the tensors of a layer hold its experts; a module of `fiddler.checkpoint.layouts` describes and reads each."""

Role = Literal["gate", "up", "down", "gate_up", "gate_bias", "up_bias", "down_bias", "gate_up_bias", "factor_gate"]
"""What a tensor holds of an expert, or of every expert of a layer; gate_up and factor_gate hold two matrices each."""


@dataclass(frozen=True, slots=True)
class Naming:
    """One way to name the tensors of experts: a row of the table."""

    description: str
    """The names in short, as error messages show them."""
    _: KW_ONLY
    layout: Layout
    pattern: re.Pattern[str]
    """Matches a whole tensor name.

    Its groups are `prefix` (what the names of the layer's experts have in common), `layer`, `part` and, in a separate
    layout, `expert`. A group `stack` that matches "decoder" means that layers are counted on from the encoder's.
    """
    parts: Mapping[str, Role]
    """The role of a tensor, by what the group `part` matches."""
    interleaved_in: frozenset[str] = frozenset()
    """Model types in which the rows of gate and up alternate in a fused tensor, gate first; no shape shows it."""
    expert_name: str = "{}"
    """How an expert's number is written in a separate layout, for messages about tensors that are missing."""
    suffix: str = ".weight"
    """What follows a part in a separate layout, for the same messages."""
    biases_are_optional: bool = False
    """Whether a layer in a separate layout may have no bias at all, though the row has parts for them."""


_LAYER = r"(?:[\w.]+\.)?layers\.(?P<layer>\d{1,9})"


def _each(block: str, part: str, suffix: str = r"\.weight") -> re.Pattern[str]:
    """The pattern of namings in which every expert has tensors of its own."""
    return re.compile(rf"(?P<prefix>{_LAYER}\.{block}experts)\.(?P<expert>\d{{1,9}})\.(?P<part>{part}){suffix}")


NAMINGS: Final = (
    Naming(
        "layers.N.block_sparse_moe.experts.M.{w1,w3,w2}.weight",
        layout="separate",
        pattern=_each(r"(?:\w+\.)?", "w1|w2|w3"),
        parts={"w1": "gate", "w3": "up", "w2": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.M.{gate_proj,up_proj,down_proj}.weight",
        layout="separate",
        # Nemotron-H calls its blocks "mixer"; its experts have no gate and are the next row's
        pattern=_each(r"(?!mixer\.)\w+\.", r"(?:gate|up|down)_proj\.(?:weight|bias)", suffix=""),
        parts={
            "gate_proj.weight": "gate",
            "up_proj.weight": "up",
            "down_proj.weight": "down",
            "gate_proj.bias": "gate_bias",
            "up_proj.bias": "up_bias",
            "down_proj.bias": "down_bias",
        },
        suffix="",
        biases_are_optional=True,
    ),
    Naming(
        "layers.N.mixer.experts.M.{up_proj,down_proj}.weight",
        layout="separate",
        pattern=_each(r"mixer\.", "up_proj|down_proj"),
        parts={"up_proj": "up", "down_proj": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.{gate_up_proj,down_proj}",
        layout="fused",
        pattern=re.compile(
            rf"(?P<prefix>{_LAYER}\.(?:\w+\.)?experts)\.(?P<part>(?:gate_up_proj|down_proj)(?:_bias)?)(?:\.weight)?"
        ),
        parts={
            "gate_up_proj": "gate_up",
            "down_proj": "down",
            "gate_up_proj_bias": "gate_up_bias",
            "down_proj_bias": "down_bias",
        },
        interleaved_in=frozenset({"gpt_oss"}),
    ),
    Naming(
        "layers.N.mlp.experts.{fc1,fc2}.weight",
        layout="fused",
        pattern=re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>fc1|fc2)\.weight"),
        parts={"fc1": "gate_up", "fc2": "down"},
    ),
    Naming(
        "layers.N.mlp.experts.{w13_weight,w2_weight}",
        layout="fused",
        pattern=re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>w13_weight|w2_weight)"),
        parts={"w13_weight": "gate_up", "w2_weight": "down"},
        interleaved_in=frozenset({"inkling_mm_model", "inkling2", "inkling2_text"}),
    ),
    Naming(
        "layers.N.block_sparse_moe.{input_linear,output_linear}.weight",
        layout="fused",
        pattern=re.compile(rf"(?P<prefix>{_LAYER}\.block_sparse_moe)\.(?P<part>input_linear|output_linear)\.weight"),
        parts={"input_linear": "gate_up", "output_linear": "down"},
    ),
    Naming(
        "layers.N.mlp.{input_linear,output_linear}.weight",
        layout="fused",
        pattern=re.compile(rf"(?P<prefix>{_LAYER}\.mlp)\.(?P<part>input_linear|output_linear)\.weight"),
        parts={"input_linear": "gate_up", "output_linear": "down"},
    ),
    Naming(
        "blocks.N.ffn.experts.mlp.{w1,v1,w2}",
        layout="concatenated",
        pattern=re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?blocks\.(?P<layer>\d{1,9})\.ffn\.experts\.mlp)\.(?P<part>w1|v1|w2)"
        ),
        parts={"w1": "gate", "v1": "up", "w2": "down"},
    ),
    Naming(
        "blocks.N.ffn.experts.mlp.M.{w1,v1,w2}.weight",  # as tools take the one above apart
        layout="separate",
        pattern=re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?blocks\.(?P<layer>\d{1,9})\.ffn\.experts\.mlp)\.(?P<expert>\d{1,9})"
            r"\.(?P<part>w1|v1|w2)\.weight"
        ),
        parts={"w1": "gate", "v1": "up", "w2": "down"},
    ),
    Naming(
        "{encoder,decoder}.block.N.layer.L.mlp.experts.expert_M.{wi,wo}.weight",
        layout="separate",
        pattern=re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?(?P<stack>encoder|decoder)\.block\.(?P<layer>\d{1,9})\.layer\.\d\.mlp\.experts)"
            r"\.expert_(?P<expert>\d{1,9})\.(?P<part>wi|wo)\.weight"
        ),
        parts={"wi": "up", "wo": "down"},
        expert_name="expert_{}",
    ),
    Naming(
        "{encoder,decoder}.layers.N.ffn.experts.expert_M.{fc1,fc2}.{weight,bias}",
        layout="separate",
        pattern=re.compile(
            r"(?P<prefix>(?:[\w.]+\.)?(?P<stack>encoder|decoder)\.layers\.(?P<layer>\d{1,9})\.ffn\.experts)"
            r"\.expert_(?P<expert>\d{1,9})\.(?P<part>fc[12]\.(?:weight|bias))"
        ),
        parts={"fc1.weight": "up", "fc1.bias": "up_bias", "fc2.weight": "down", "fc2.bias": "down_bias"},
        expert_name="expert_{}",
        suffix="",
    ),
    Naming(
        "layers.N.mlp.experts.{wi_gate,wi_up,wo}",
        layout="stacked",
        pattern=re.compile(rf"(?P<prefix>{_LAYER}\.mlp\.experts)\.(?P<part>wi_gate|wi_up|wo)"),
        parts={"wi_gate": "factor_gate", "wi_up": "up", "wo": "down"},
    ),
)
