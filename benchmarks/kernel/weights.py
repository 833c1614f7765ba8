"""The weights that all cases share: one mapped file, viewed as experts of Mixtral's size or as many small ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional

from cpu_expert_service.kernel import LayerFunction
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import Pool

_NOISE = 8 << 20
_MISALIGNED_BYTES = 8  # safetensors pads headers to 8 bytes, so matrices seldom begin on a cache line


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer of a model."""

    hidden: int
    intermediate: int
    num_experts: int

    @property
    def expert_elements(self) -> int:
        """Weights of one expert. Each is one multiplication and one addition for a row."""
        return 3 * self.hidden * self.intermediate

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in bfloat16."""
        return 2 * self.expert_elements


MIXTRAL = Shape(4096, 14336, 4)  # of its 8 experts; these are 1.4 GB
QWEN3_30B_A3B = Shape(2048, 768, 128)
QWEN3_TOP_K = 8
TINY = Shape(64, 64, 8)


@contextmanager
def mapped() -> Iterator[torch.Tensor]:
    """[elements] of noise in a mapped file; all of it is in the page cache."""
    num_elements = MIXTRAL.num_experts * MIXTRAL.expert_elements
    skipped = _MISALIGNED_BYTES // 2
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).mul_(MIXTRAL.hidden**-0.5)
    values = noise.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    with TemporaryDirectory(prefix="fiddler-") as directory:
        path = Path(directory) / "weights"
        with path.open("wb") as file:
            file.write(bytes(_MISALIGNED_BYTES))
            for _ in range(-(-num_elements // _NOISE)):
                file.write(values)
        weights = torch.from_file(str(path), shared=True, size=skipped + num_elements, dtype=torch.bfloat16)[skipped:]
        weights.sum()  # maps every page
        yield weights


def layer(weights: torch.Tensor, shape: Shape) -> LayerWeights:
    """Views of the weights, one expert after the other."""
    size = shape.hidden * shape.intermediate
    wide, narrow = (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)
    experts = []
    for begin in range(0, shape.num_experts * shape.expert_elements, shape.expert_elements):
        gate, up, down = weights[begin : begin + shape.expert_elements].view(3, size)
        experts.append(ExpertWeights(gate.view(wide), up.view(wide), down.view(narrow)))
    return LayerWeights(tuple(experts), "silu")


def widened(experts: LayerWeights, count: int) -> list[ExpertWeights]:
    """The first `count` experts in float32."""
    return [
        expert.with_tensors({name: tensor.float() for name, tensor in expert.tensors()})
        for expert in experts.experts[:count]
    ]


def torch_expert(experts: list[ExpertWeights], rows: torch.Tensor) -> Callable[[], object]:
    """One expert in as few PyTorch operations as possible; each call uses the next expert."""
    turns = cycle([tuple(tensor for _, tensor in expert.matrices()) for expert in experts])

    def compute() -> torch.Tensor:
        gate, up, down = next(turns)
        combined = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
        return functional.linear(combined, down)

    with torch.inference_mode():
        compute()
    return torch.inference_mode()(compute)


def layer_call(compute: LayerFunction, rows: torch.Tensor, ids: list[torch.Tensor]) -> Callable[[], object]:
    """A call of the layer; each call uses the next expert ids."""
    turns = cycle(ids)
    routing_weights = torch.full(ids[0].shape, 1 / ids[0].shape[1])
    return lambda: compute(rows, next(turns), routing_weights)


def same_expert(num_rows: int, num_experts: int) -> list[torch.Tensor]:
    """Ids that send all rows to one expert, for each expert."""
    return [torch.full((num_rows, 1), expert, dtype=torch.int32) for expert in range(num_experts)]


def read_loop(pool: Pool, weights: torch.Tensor, *, num_bytes: int, streams: int) -> Callable[[], None]:
    """A call that reads `num_bytes`; each call reads the bytes that follow the last one's."""
    count = weights.numel() * weights.itemsize // num_bytes
    turns = cycle(weights.data_ptr() + number * num_bytes for number in range(count))
    return lambda: pool.read(next(turns), num_bytes, streams)
