import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.coding import dequantize_bytes
from fiddler.expert_math import expert_forward, layer_combination, layer_weights
from fiddler.host_memory import HostMemory
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.errors import FlagError
from gpu_service.settings import Settings
from gpu_service.startup import dry_run
from gpu_service.startup.device_memory import check_dense_weights, check_kv_cache, experts_workspace_bytes
from gpu_service.startup.model import load_model, warm_up
from tests.support import checkpoints, coded
from tests.support.memory_use import peak_bytes
from tests.support.pairs import DEMO


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Sequence[CheckpointLayer]:
    directory = tmp_path_factory.mktemp("mixtral")
    return Checkpoint.open(checkpoints.write("mixtral", directory, dtype=torch.bfloat16)).layers


def _workspace(
    layers: Sequence[CheckpointLayer], experts_per_token: int, num_tokens: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    return experts_workspace_bytes(layers, experts_per_token=experts_per_token, num_tokens=num_tokens, dtype=dtype)


def test_experts_take_more_for_a_larger_chunk_and_no_more_than_all_of_its_rows(
    layers: Sequence[CheckpointLayer],
) -> None:
    layer = layers[0]
    hidden, inner = layer.hidden_size, layer.intermediate_size

    def expected(rows: int, tokens: int) -> int:
        return rows * (4 * inner * 2 + hidden * (2 * 2 + 8)) + tokens * hidden * 4

    share = 2 * 2 / layer.num_experts
    assert share <= 1
    for tokens in (512, 4096):
        assert _workspace(layers, 2, tokens) == expected(int(tokens * share), tokens)
    assert _workspace(layers, layer.num_experts, 512) == expected(512, 512)


def test_the_largest_layer_counts(layers: Sequence[CheckpointLayer]) -> None:
    first = replace(layers[0], intermediate_size=10 * layers[0].intermediate_size)
    assert _workspace([*layers[1:], first], 2, 512) == _workspace([first], 2, 512)
    assert _workspace([first], 2, 512) > _workspace(layers, 2, 512)


@pytest.mark.parametrize("name", ["fp8 block", "mxfp4", "int4 group 32 asymmetric"])
def test_one_decoded_matrix_counts(name: str, tmp_path: Path) -> None:
    plain = checkpoints.write("qwen3_moe", tmp_path / "plain", dtype=torch.float32, moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: ".experts." in tensor)
    checkpoint, layers = Checkpoint.open(directory), Checkpoint.open(plain).layers
    matrix = (96, 64)
    added = _workspace(checkpoint.layers, 3, 64) - _workspace(layers, 3, 64)
    assert added == dequantize_bytes(matrix, torch.bfloat16) - 4 * 96 * 64, "the plain ones are made float32"
    expert = layer_weights(checkpoint, checkpoint.layers[0]).experts[0]
    combine = layer_combination(checkpoint.layers[0].activation)
    for dtype in (torch.bfloat16, torch.float32):
        rows = torch.randn(64, 64, dtype=dtype)
        expert_forward(expert, combine, rows)  # once without being measured: tables that stay are made
        peak = peak_bytes(partial(expert_forward, expert, combine, rows))
        assert dequantize_bytes(matrix, dtype) / 4 < peak <= _workspace(checkpoint.layers, 8, 64, dtype)


@pytest.fixture
def two_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free in the control group of this process."""
    monkeypatch.setattr(host_memory, "measure", lambda: HostMemory(total_bytes=3 * 2**20, free_bytes=2 * 2**20))


@pytest.mark.usefixtures("two_megabytes")
def test_dense_weights_that_are_converted_must_fit_in_the_hosts_memory() -> None:
    demo = Checkpoint.open(DEMO)
    assert demo.dense_bytes < 2 * 2**20 < 2 * demo.dense_bytes
    sentence = (
        r"^--dtype: dense weights in float32, converted from bfloat16, need 3\.78 MiB, and 2 MiB are free of the 3 MiB "
        "of memory that this process may use; raise the limit$"
    )
    with pytest.raises(FlagError, match=sentence):
        check_dense_weights(demo, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(FlagError, match=sentence):
        dry_run.report(Settings(model=DEMO, device="cpu", dtype="float32", dry_run=True))
    check_dense_weights(demo, device=torch.device("cpu"), dtype=torch.bfloat16)
    check_dense_weights(demo, device=torch.device("cuda"), dtype=torch.float32)


def test_coded_dense_weights_are_converted_in_any_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = checkpoints.write("qwen3_moe", tmp_path / "plain")
    directory = coded.rewrite(plain, tmp_path / "coded", "fp8 block", lambda tensor: "self_attn" in tensor)
    checkpoint, device = Checkpoint.open(directory), torch.device("cpu")
    num_weights = sum(math.prod(each.shape) for each in checkpoint.dense_tensors if "_proj" in each.name)
    assert num_weights
    for spare in (0, -1):
        free = HostMemory(total_bytes=2**30, free_bytes=4 * num_weights + spare)
        monkeypatch.setattr(host_memory, "measure", lambda free=free: free)
        if spare == 0:
            check_dense_weights(checkpoint, device=device, dtype=torch.float32)
        else:
            with pytest.raises(FlagError, match=r"^--dtype: dense weights in float32, converted from fp8 128x64, "):
                check_dense_weights(checkpoint, device=device, dtype=torch.float32)


@pytest.mark.usefixtures("two_megabytes")
def test_a_kv_cache_must_fit_in_the_hosts_memory() -> None:
    def budget(num_tokens: int) -> KvBudget:
        return KvBudget(num_tokens=num_tokens, token_bytes=2**10, max_rows=4, max_length=2**20)

    with pytest.raises(
        FlagError,
        match=r"^--kv-memory: keys and values need 2\.001 MiB, and 2 MiB are free .*; ask for less, or for auto$",
    ):
        check_kv_cache(budget(2**11 + 1), torch.device("cpu"))
    check_kv_cache(budget(2**11), torch.device("cpu"))
    check_kv_cache(budget(2**11 + 1), torch.device("cuda"))


def test_a_start_checks_the_hosts_memory_before_it_takes_any(request: pytest.FixtureRequest) -> None:
    demo, device = Checkpoint.open(DEMO), torch.device("cpu")
    experts = cast(ExpertClient, InProcessExperts(demo))
    loaded, _ = load_model(Settings(model=DEMO), demo, device=device, dtype=torch.float32, experts=experts)
    request.getfixturevalue("two_megabytes")
    with pytest.raises(FlagError, match="--kv-memory: keys and values need"):
        warm_up(Settings(model=DEMO, kv_memory="1"), loaded)
    with pytest.raises(FlagError, match="--dtype: dense weights"):
        load_model(Settings(model=DEMO), demo, device=device, dtype=torch.float32, experts=experts)
