"""DeepSeek-MoE and OpenMoE in plain float64, without a cache: the references for their model code.

Written from the papers and the published checkpoints. They share no code with the implementation or with transformers:
a decoder is a number of functions of a checkpoint's tensors under their published names.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


class PlainModel:
    """A checkpoint's logits."""

    def __init__(self, directory: Path) -> None:
        """Reads all of its tensors as float64."""
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.tensors: Tensors = {}
        for file in sorted(directory.glob("*.safetensors")):
            self.tensors |= {name: tensor.double() for name, tensor in load_file(file).items()}
        self.num_dropped = 0
        """Assignments of the latest forward whose experts had no room."""

    def continuation(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """[tokens, vocab]: the logits from which each token of a continuation is chosen.

        If the logit of every token is the largest of its row, the continuation is the greedy one.
        """
        return self.logits([*prompt, *tokens[:-1]], len(prompt))[len(prompt) - 1 :].float()

    def logits(self, tokens: list[int], num_prompt: int) -> torch.Tensor:
        """The logits [tokens, vocab] of a text whose first `num_prompt` tokens are the prompt."""
        self.num_dropped = 0
        hidden = self.tensors["model.embed_tokens.weight"][tokens]
        for layer in range(self.config["num_hidden_layers"]):
            hidden = self._layer(f"model.layers.{layer}", hidden, number=layer, num_prompt=num_prompt)
        head = "lm_head" if "lm_head.weight" in self.tensors else "model.embed_tokens"
        return self._norm("model.norm", hidden) @ self.tensors[f"{head}.weight"].T

    def _layer(self, prefix: str, hidden: torch.Tensor, *, number: int, num_prompt: int) -> torch.Tensor:
        raise NotImplementedError

    def _norm(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        root: torch.Tensor = (hidden.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return hidden / root * self.tensors[f"{name}.weight"]

    def _attend(self, prefix: str, hidden: torch.Tensor, *, head: int, scale: float) -> torch.Tensor:
        """Causal attention. Queries and keys are rotated by position; the values of a pair are half a head apart."""
        length = len(hidden)

        def heads(name: str) -> torch.Tensor:
            values = hidden @ self.tensors[f"{prefix}.{name}_proj.weight"].T
            return values.view(length, -1, head).transpose(0, 1)

        queries, keys, values = (heads(name) for name in "qkv")
        groups = len(queries) // len(keys)
        keys, values = (each.repeat_interleave(groups, 0) for each in (keys, values))
        scores = _rotated(queries) @ _rotated(keys).transpose(1, 2) * scale
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        mixed = (weights @ values).transpose(0, 1).reshape(length, -1)
        return mixed @ self.tensors[f"{prefix}.o_proj.weight"].T


class PlainDeepseek(PlainModel):
    """arXiv 2401.06066, section 3."""

    def _layer(self, prefix: str, hidden: torch.Tensor, *, number: int, num_prompt: int) -> torch.Tensor:
        head = self.config["hidden_size"] // self.config["num_attention_heads"]
        normed = self._norm(f"{prefix}.input_layernorm", hidden)
        hidden = hidden + self._attend(f"{prefix}.self_attn", normed, head=head, scale=head**-0.5)
        normed = self._norm(f"{prefix}.post_attention_layernorm", hidden)
        is_dense = number < self.config["first_k_dense_replace"] or number % self.config["moe_layer_freq"] != 0
        return hidden + (self._mlp(f"{prefix}.mlp", normed) if is_dense else self._experts(f"{prefix}.mlp", normed))

    def _experts(self, prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        outputs = torch.zeros_like(hidden)
        affinities = (hidden @ self.tensors[f"{prefix}.gate.weight"].T).softmax(-1)
        for row, values in enumerate(affinities.tolist()):
            best = sorted(range(len(values)), key=values.__getitem__)[-self.config["num_experts_per_tok"] :]
            total = sum(values[expert] for expert in best) if self.config["norm_topk_prob"] else 1.0
            for expert in best:
                outputs[row] += values[expert] / total * self._mlp(f"{prefix}.experts.{expert}", hidden[row])
        if f"{prefix}.shared_experts.up_proj.weight" in self.tensors:
            outputs += self._mlp(f"{prefix}.shared_experts", hidden)
        return outputs

    def _mlp(self, prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.tensors[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (_silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T


class PlainOpenMoe(PlainModel):
    """arXiv 2402.01739, and ST-MoE (arXiv 2202.08906), from which it comes."""

    def _layer(self, prefix: str, hidden: torch.Tensor, *, number: int, num_prompt: int) -> torch.Tensor:
        normed = self._norm(f"{prefix}.input_layernorm", hidden)
        hidden = hidden + self._attend(f"{prefix}.self_attn", normed, head=self.config["head_dim"], scale=1.0)
        normed = self._norm(f"{prefix}.post_attention_layernorm", hidden)
        if (number + 1) % self.config["moe_layer_interval"] != 0:
            return hidden + self._mlp(f"{prefix}.mlp", normed)
        hidden = hidden + self._experts(f"{prefix}.mlp", normed, num_prompt)
        return hidden + self._mlp(f"{prefix}.extra_mlp", self._norm(f"{prefix}.pre_extra_mlp_layernorm", hidden))

    def _experts(self, prefix: str, hidden: torch.Tensor, num_prompt: int) -> torch.Tensor:
        outputs = torch.zeros_like(hidden)
        chances = (hidden @ self.tensors[f"{prefix}.gate_weight"].T).softmax(-1)
        ranked = chances.argsort(-1, descending=True).tolist()
        room = [self._capacity(num_prompt)] * self.config["num_experts"]
        for choice in (0, 1):  # all first choices get room before any second choice
            for row, experts in enumerate(ranked):
                expert = experts[choice]
                if row < num_prompt and self.config["router_drop_tks"]:
                    room[expert] -= 1
                    if room[expert] < 0:
                        self.num_dropped += 1
                        continue
                outputs[row] += chances[row, expert] * self._expert(f"{prefix}.experts", expert, hidden[row])
        return outputs

    def _capacity(self, num_prompt: int) -> int:
        factor: float = self.config["router_capacity_factor_eval"]
        room: int = math.floor(2 * factor * num_prompt / self.config["num_experts"])
        least: int = self.config["router_min_capacity"]
        return max(room if room % 2 == 0 else room + 1, least)

    def _expert(self, prefix: str, expert: int, row: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.tensors[f"{prefix}.{name}"][expert] for name in ("wi_gate", "wi_up", "wo"))
        return (_swiglu(row @ gate) * (row @ up)) @ down

    def _mlp(self, prefix: str, hidden: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.tensors[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (_swiglu(hidden @ gate.T) * (hidden @ up.T)) @ down.T


MODELS: dict[str, Callable[[Path], PlainModel]] = {"deepseek": PlainDeepseek, "openmoe": PlainOpenMoe}


def _silu(values: torch.Tensor) -> torch.Tensor:
    return values / (1 + (-values).exp())


def _swiglu(values: torch.Tensor) -> torch.Tensor:
    """The first half times the SiLU of the second."""
    half = values.shape[-1] // 2
    return values[..., :half] * _silu(values[..., half:])


def _rotated(heads: torch.Tensor) -> torch.Tensor:
    """[heads, tokens, size]: (first half, second half) as complex numbers, turned by position / 10000^(2i/size)."""
    half = heads.shape[-1] // 2
    speeds = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(heads.shape[1], dtype=torch.float64)[:, None] * speeds
    turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)
