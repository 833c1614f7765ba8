"""Models that the simulator serves: models/NAME.json, sizes counted from the published configurations.

Everything is bfloat16, with every strategy: what a strategy would gain by quantising is not its way to orchestrate.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_PROFILES = Path(__file__).with_name("models")
BYTES_PER_VALUE = 2


@dataclass(frozen=True, slots=True)
class Model:
    """How many values a model has, and where."""

    name: str
    title: str
    source: str
    routing: str
    """Which trace it is driven by: see workloads.py."""
    layers: int
    moe_layers: int
    experts: int
    """Routed experts of one MoE layer."""
    top_k: int
    hidden_size: int
    expert_parameters: int
    attention_parameters: int
    """Of one layer."""
    attention_width: int
    """Heads x dimension of one head, of scores and values on average."""
    dense_mlp_parameters: int
    """Of all layers that are no MoE layers."""
    shared_parameters: int
    """Experts of one MoE layer that every token passes."""
    head_parameters: int
    embedding_parameters: int
    kv_values: int
    """Cached for one token in one layer."""
    resident_share: float = 0.0
    """Share of the experts that fit, where the profile says so; 0: what the machine's memory allows."""

    @property
    def expert_bytes(self) -> int:
        """Of one routed expert."""
        return self.expert_parameters * BYTES_PER_VALUE

    @property
    def layer_parameters(self) -> int:
        """What the GPU always holds of a layer: attention and router."""
        return self.attention_parameters + self.hidden_size * self.experts

    @property
    def dense_bytes(self) -> int:
        """All but the routed experts."""
        moe = self.moe_layers * self.shared_parameters
        layers = self.layers * self.layer_parameters
        ends = self.head_parameters + self.embedding_parameters
        return (layers + moe + self.dense_mlp_parameters + ends) * BYTES_PER_VALUE

    @property
    def kv_bytes_per_token(self) -> int:
        """In all layers."""
        return self.layers * self.kv_values * BYTES_PER_VALUE

    @property
    def row_bytes(self) -> int:
        """One hidden row."""
        return self.hidden_size * BYTES_PER_VALUE


def load(name: str) -> Model:
    """Reads one profile."""
    return Model(name, **json.loads((_PROFILES / f"{name}.json").read_text()))


def names() -> list[str]:
    """All profiles, Fiddler's first."""
    found = {path.stem for path in _PROFILES.glob("*.json")}
    known = [name for name in ("mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v2_lite") if name in found]
    return known + sorted(found.difference(known))
