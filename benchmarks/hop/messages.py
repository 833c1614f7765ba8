"""The messages of a decode step and of a prefill chunk, and the checkpoint that they are for."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from typing_extensions import override

from cpu_expert_service.kernel import Kernel, LayerFunction
from fiddler import tensors
from fiddler.expert_math import LayerWeights
from fiddler.v1 import experts_pb2

HIDDEN_SIZE = 4096
NUM_ROWS = {"decode_8KiB": 1, "prefill_4MiB": 512}
MAX_MESSAGE_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 60.0
_NUM_EXPERTS = 8
_INTERMEDIATE_SIZE = 8


@dataclass(frozen=True, slots=True)
class Message:
    """One layer's rows at top-2."""

    hidden: torch.Tensor
    """[rows, 4096] bfloat16"""
    expert_ids: torch.Tensor
    """[rows, 2] int32"""
    routing_weights: torch.Tensor
    """[rows, 2] float32"""

    @classmethod
    def make(cls, num_rows: int) -> "Message":
        """Random rows, the same each time."""
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(num_rows, _NUM_EXPERTS, generator=generator)
        weights, ids = scores.topk(2)
        hidden = torch.randn(num_rows, HIDDEN_SIZE, generator=generator).to(torch.bfloat16)
        return cls(hidden, ids.to(torch.int32), weights)

    def encode(self) -> experts_pb2.RunRequest:
        """The request that ExpertClient.submit sends."""
        request = experts_pb2.RunRequest(sequence=1, layer=0, time_remaining_seconds=TIMEOUT_SECONDS)
        tensors.encode(self.hidden, request.hidden)
        tensors.encode(self.expert_ids, request.expert_ids)
        tensors.encode(self.routing_weights, request.routing_weights)
        return request


class NoKernel(Kernel):
    """Computes nothing; its answer is the rows of the request."""

    name = "none"
    num_threads = 1

    @override
    def prepare(self, layer: LayerWeights) -> LayerFunction:
        return lambda hidden, expert_ids, routing_weights: hidden


def write_checkpoint(directory: Path) -> None:
    """The experts of a one-layer Mixtral of the messages' hidden size, and nothing else."""
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": _INTERMEDIATE_SIZE,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "num_local_experts": _NUM_EXPERTS,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    inner = torch.zeros(_INTERMEDIATE_SIZE, HIDDEN_SIZE, dtype=torch.bfloat16)
    shapes = {"w1": inner, "w2": inner.T.contiguous(), "w3": inner}
    weights = {
        f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight": matrix.clone()
        for expert in range(_NUM_EXPERTS)
        for part, matrix in shapes.items()
    }
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
