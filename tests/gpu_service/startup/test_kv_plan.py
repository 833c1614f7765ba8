"""The KV cache that the dry run tells is the one that a start makes."""

from pathlib import Path
from typing import cast

import pytest
import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import FlagError
from gpu_service.model_runner.loading import read_config
from gpu_service.model_runner.trial import CacheSizes, try_model
from gpu_service.settings import Settings
from gpu_service.startup.checks import check
from gpu_service.startup.kv_plan import plan
from gpu_service.startup.model import load_model, warm_up
from tests.support.checkpoints import write_tokenizer
from tests.support.families import tiny
from tests.support.pairs import DEMO

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "nemotron_h"])
def test_what_the_trial_finds_is_what_a_model_keeps(family: str, tmp_path: Path) -> None:
    directory = tiny.write(family, tmp_path)
    write_tokenizer(directory)
    sizes = try_model(Checkpoint.open(directory), read_config(directory), torch.float32).cache
    settings = Settings(model=directory, dtype="float32")
    checkpoint = Checkpoint.open(directory)
    experts = cast(ExpertClient, InProcessExperts(checkpoint))
    model, _ = load_model(settings, checkpoint, device=CPU, dtype=torch.float32, experts=experts)
    warm_up(settings, model)
    cache = model.cache
    assert sizes == CacheSizes(token_bytes=cache.token_bytes, row_bytes=cache.row_bytes)


@pytest.mark.parametrize(
    ("context", "memory", "num_tokens", "length"),
    [("auto", "1", 16 * 1000, 1000), ("auto", str(600 / 2**20), 600, 600), ("500", str(600 / 2**20), 600, 500)],
)
def test_the_context_is_the_models_as_far_as_one_sequence_has_memory(
    context: str, memory: str, num_tokens: int, length: int
) -> None:
    settings = Settings(model=DEMO, max_context=context, kv_memory=memory)
    positions = 1000 if context == "auto" else int(context)
    budget = plan(settings, CacheSizes(1024, 0), max_context=positions, device=CPU, free_bytes=2**30)
    assert (budget.num_tokens, budget.max_length) == (num_tokens, length)
    assert budget.shape(1, length) is not None


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(2**23, 2**22))
    settings = Settings(model=DEMO, kv_memory="1")
    with pytest.raises(FlagError, match="--kv-memory: keys and values need"):
        plan(settings, CacheSizes(1024, 0), max_context=10**6, device=CPU, free_bytes=2**22)


def test_the_positions_are_those_that_are_asked_for_and_there() -> None:
    checkpoint = Checkpoint.open(DEMO)
    for asked, positions in (("auto", 2048), ("100", 100), ("5000", 2048)):
        checked = check(Settings(model=DEMO, max_context=asked), checkpoint, device=CPU, dtype=torch.bfloat16)
        assert checked.max_context == positions
