from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.host_memory import HostMemory
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.errors import FlagError
from gpu_service.settings import Settings
from gpu_service.startup import dry_run
from gpu_service.startup.device_memory import check_dense_weights, check_kv_cache, experts_workspace_bytes
from gpu_service.startup.model import load_model, warm_up
from tests.support.pairs import DEMO, write_tiny


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Sequence[CheckpointLayer]:
    return Checkpoint.open(write_tiny(tmp_path_factory.mktemp("mixtral"), "mixtral")).layers


def _workspace(layers: Sequence[CheckpointLayer], experts_per_token: int, num_tokens: int) -> int:
    """In bfloat16."""
    return experts_workspace_bytes(layers, experts_per_token=experts_per_token, num_tokens=num_tokens, value_bytes=2)


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
