"""The simulated models: models/NAME.json, with sizes from the published configurations.

All strategies use bfloat16, since the gain from quantisation is not one of orchestration.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_PROFILES = Path(__file__).with_name("models")
BYTES_PER_VALUE = 2


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes of a model."""

    name: str
    title: str
    source: str
    routing: str
    """Selects its trace: see workloads.py."""
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
    """Of all layers without experts."""
    shared_parameters: int
    """Of the shared experts of one MoE layer."""
    head_parameters: int
    embedding_parameters: int
    kv_values: int
    """Cached for one token in one layer."""
    resident_share: float = 0.0
    """Share of the experts that fit, if the profile sets it; 0: as many as the machine's memory allows."""

    @property
    def expert_bytes(self) -> int:
        """Of one routed expert."""
        return self.expert_parameters * BYTES_PER_VALUE

    @property
    def layer_parameters(self) -> int:
        """The part of a layer that is always resident on the GPU: attention and router."""
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
    """Names of all profiles, those of docs/orchestration.md's plot first."""
    found = {path.stem for path in _PROFILES.glob("*.json")}
    known = [name for name in ("mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v2_lite") if name in found]
    return known + sorted(found.difference(known))
