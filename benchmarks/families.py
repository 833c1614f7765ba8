"""`python -m benchmarks.families`: one layer of five models of different structure, by the kernel and by PyTorch.

families.MODEL.mN.ours                            ms for N tokens through a layer of the model's shape, in bfloat16
families.MODEL.mN.torch                           the same by the PyTorch kernel, the fallback
families.MODEL.mN.speedup_over_torch              torch over ours, round by round
families.MODEL.mN.fraction_of_read_bandwidth      a loop that only reads the chosen experts, over ours
families.MODEL.mN.torch_fraction_of_read_bandwidth  the same over torch
families.MODEL.mN.read                            GB/s of that loop, and the number of chosen experts

The weights are in a mapped file, in the layout that each model is published in (gpt-oss: transposed, gate and up
alternating, with biases; Switch: not gated). Experts are chosen uniformly, and each call uses others than the one
before. One token is bound by reading; 64 tokens are bound by arithmetic if many of them share an expert.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness.results import Append, Out, Quick, Report, Tier, report
from benchmarks.harness.rounds import Work, interleave, milliseconds, ratios
from cpu_expert_service.kernel import Kernel, PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.cpus import choose_cpus, read_topology
from fiddler.kernels.native import Pool, available_tiers
from tools.command_line import run

_ROWS = (1, 8, 64)
_MESSAGES = 12
_STREAMS = 2
_NOISE = 8 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """The experts of one layer of a model."""

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    experts_per_token: int
    activation: str = "silu"
    is_gated: bool = True
    is_interleaved: bool = False
    """Gate and up alternate in one transposed matrix, down is transposed too, and all have biases."""

    @property
    def expert_elements(self) -> int:
        """Weights of one expert."""
        return (3 if self.is_gated else 2) * self.hidden * self.intermediate


LAYERS = (
    Layer("qwen3_30b_a3b", 2048, 768, 128, 8),
    Layer("deepseek_v2_lite", 2048, 1408, 64, 6),
    Layer("gpt_oss_20b", 2880, 2880, 32, 4, activation="clamped_swiglu", is_interleaved=True),
    Layer("phi_3_5_moe", 4096, 6400, 16, 2),
    Layer("switch_base_128", 768, 3072, 128, 1, activation="relu", is_gated=False),
)


def main(
    out: Out = None,
    append: Append = False,
    quick: Quick = False,
    tier: Tier = None,
) -> None:
    """Runs the benchmark."""
    tier = tier or available_tiers()[-1]
    cpus = choose_cpus(read_topology())
    with report(out, append) as results, _mapped() as noise:
        pool = Pool(cpus)
        kernels: dict[str, Kernel] = {"ours": NativeKernel(pool, tier), "torch": PyTorchKernel(len(cpus))}
        for layer in LAYERS:
            experts = _experts(noise, layer)
            functions = {name: kernel.prepare(experts) for name, kernel in kernels.items()}
            for rows in _ROWS:
                rounds = 3 if quick else 11 if rows < 64 else 5
                _measure(results, layer, functions, pool=pool, noise=noise, rows=rows, rounds=rounds)
        pool.close()


def _measure(
    out: Report,
    layer: Layer,
    functions: Mapping[str, Callable[..., object]],
    *,
    pool: Pool,
    noise: torch.Tensor,
    rows: int,
    rounds: int,
) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, layer.hidden, generator=generator).to(torch.bfloat16)
    ids = [_choose(layer, rows, generator) for _ in range(_MESSAGES)]
    wanted = [len(set(each.flatten().tolist())) for each in ids]
    cases: dict[str, Work] = {name: _calls(compute, hidden, ids) for name, compute in functions.items()}
    num_bytes = [count * layer.expert_elements * noise.itemsize for count in wanted]
    cases["read"] = _reads(pool, noise, num_bytes)
    samples = interleave(cases, rounds)
    name = f"families.{layer.name}.m{rows}"
    for case in functions:
        out.samples(f"{name}.{case}", milliseconds(samples[case]), "ms")
    out.samples(f"{name}.speedup_over_torch", ratios(samples["torch"], samples["ours"]), "ratio")
    out.samples(f"{name}.fraction_of_read_bandwidth", ratios(samples["read"], samples["ours"]), "ratio")
    out.samples(f"{name}.torch_fraction_of_read_bandwidth", ratios(samples["read"], samples["torch"]), "ratio")
    # the warm-up used the first
    read_bytes = [num_bytes[(number + 1) % _MESSAGES] for number in range(rounds)]
    speeds = [size / seconds / 1e9 for size, seconds in zip(read_bytes, samples["read"], strict=True)]
    out.samples(f"{name}.read", speeds, "GB/s", experts=sorted(wanted)[_MESSAGES // 2], of=layer.num_experts)


def _choose(layer: Layer, rows: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, k] experts, distinct in each row."""
    scores = torch.rand(rows, layer.num_experts, generator=generator)
    return scores.topk(layer.experts_per_token).indices.to(torch.int32)


def _calls(compute: Callable[..., object], hidden: torch.Tensor, ids: list[torch.Tensor]) -> Work:
    turns = cycle(ids)
    routing_weights = torch.full(ids[0].shape, 1 / ids[0].shape[1])
    return lambda: compute(hidden, next(turns), routing_weights)


def _reads(pool: Pool, noise: torch.Tensor, num_bytes: list[int]) -> Work:
    """Reads as many bytes as the calls do; each call reads the bytes that follow the last one's."""
    turns = cycle(num_bytes)
    size, begin = noise.numel() * noise.itemsize, 0

    def read() -> None:
        nonlocal begin
        count = next(turns)
        begin = begin if begin + count <= size else 0
        pool.read(noise.data_ptr() + begin, count, _STREAMS)
        begin += count

    return read


def _experts(noise: torch.Tensor, layer: Layer) -> LayerWeights:
    """Views of the noise, one expert after the other, in the model's layout."""
    size = layer.expert_elements
    place = _interleaved if layer.is_interleaved else _plain
    parts = (noise[number * size : (number + 1) * size] for number in range(layer.num_experts))
    return LayerWeights(tuple(place(part, layer) for part in parts), layer.activation)


def _plain(part: torch.Tensor, layer: Layer) -> ExpertWeights:
    matrices = part.view(-1, layer.hidden * layer.intermediate)
    *wide, down = matrices
    gate = wide[0].view(layer.intermediate, layer.hidden) if layer.is_gated else None
    return ExpertWeights(gate, wide[-1].view(layer.intermediate, layer.hidden), down.view(layer.hidden, -1))


def _interleaved(part: torch.Tensor, layer: Layer) -> ExpertWeights:
    hidden, inner = layer.hidden, layer.intermediate
    pair = part[: 2 * hidden * inner].view(hidden, inner, 2)
    biases = part[: 2 * inner].view(inner, 2)
    return ExpertWeights(
        gate=pair[:, :, 0].T,
        up=pair[:, :, 1].T,
        down=part[2 * hidden * inner :].view(inner, hidden).T,
        gate_bias=biases[:, 0],
        up_bias=biases[:, 1],
        down_bias=part[:hidden],
    )


@contextmanager
def _mapped() -> Iterator[torch.Tensor]:
    """[elements] of noise in a mapped file, enough for the largest layer; all of it is in the page cache."""
    num_elements = max(layer.num_experts * layer.expert_elements for layer in LAYERS)
    values = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    chunk = values.view(torch.uint8).numpy().tobytes()
    with TemporaryDirectory(prefix="fiddler-") as directory:
        path = Path(directory) / "weights"
        with path.open("wb") as file:
            for _ in range(-(-num_elements // _NOISE)):
                file.write(chunk)
        noise = torch.from_file(str(path), shared=True, size=num_elements, dtype=torch.bfloat16)
        noise.sum()  # maps every page
        yield noise


if __name__ == "__main__":
    run(main, __doc__)
