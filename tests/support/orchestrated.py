"""A machine of round figures, a small model, and its routers' selections."""

from dataclasses import replace

import numpy as np

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.machines import Machine
from benchmarks.orchestration.models import Model
from benchmarks.orchestration.workloads import Request
from gpu_service.placement.popularity import Popularity

LAYERS, EXPERTS, TOP_K = 3, 8, 2

MACHINE = Machine(
    name="round",
    title="round figures",
    gpu_memory_bytes=1e12,
    gpu_budget_bytes=1e12,
    gpu_bytes_per_second=1e12,
    gpu_bf16_flops=1e14,
    pcie_bytes_per_second=1e10,
    cpu_bytes_per_second=1e11,
    cpu_flops=1e12,
    round_trip_seconds=1e-4,
    hop_bytes_per_second=1e9,
    launch_seconds=1e-6,
    sync_seconds=1e-5,
)

MODEL = Model(
    name="small",
    title="small",
    source="",
    routing="mixtral",
    layers=LAYERS,
    moe_layers=LAYERS,
    experts=EXPERTS,
    top_k=TOP_K,
    hidden_size=1000,
    expert_parameters=50_000_000,
    attention_parameters=1_000_000,
    attention_width=1000,
    dense_mlp_parameters=0,
    shared_parameters=0,
    head_parameters=1_000_000,
    embedding_parameters=1_000_000,
    kv_values=1000,
)

POPULARITY = Popularity(100, tuple(tuple(float(EXPERTS - expert) for expert in range(EXPERTS)) for _ in range(LAYERS)))
"""In every layer the first expert is the most popular."""


def system(resident_share: float = 0.5, machine: Machine = MACHINE) -> System:
    """The small model with a share of its experts on the GPU."""
    return System(machine, replace(MODEL, resident_share=resident_share))


def batch(*rows: tuple[int, ...]) -> Batch:
    """The same rows of expert ids in every layer."""
    return Batch(np.array([rows] * LAYERS, dtype=np.int16), EXPERTS)


def random_batch(random: np.random.Generator, rows: int) -> Batch:
    """Random experts, distinct in each row."""
    keys = random.random((LAYERS, rows, EXPERTS))
    return Batch(np.argsort(keys, axis=-1)[..., :TOP_K].astype(np.int16), EXPERTS)


def request(seed: int, prompt: int = 40, steps: int = 5, rows: int = 1) -> Request:
    """A prompt and decode steps."""
    random = np.random.default_rng(seed)
    return Request(random_batch(random, prompt), tuple(random_batch(random, rows) for _ in range(steps)))
