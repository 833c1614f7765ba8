"""What only a device that is not the CPU shows: prefetching, attention's backends, memory, hidden waits."""

from pathlib import Path

import pytest
import torch

from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.models.registry import architecture_of
from gpu_service.moe.prefetch import Prefetcher
from tests.support import reference
from tests.support.families import tiny
from tests.support.imitated_cuda import DEVICE, imitated_cuda
from tests.support.imitated_routes import PROMPT, TOLERANCE, Case
from tests.support.routes import CPU, WAYS, greedy, model_of, slots_of

NUM_TOKENS = 3


@pytest.mark.parametrize("family", ["lfm2_moe", "zaya", "llama4_text"])
def test_families_whose_routers_need_more_than_rows_are_served(family: str, tmp_path: Path) -> None:
    directory = tiny.write(family, tmp_path)
    model = architecture_of(family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
    tokens, logits = reference.generate(model, PROMPT, NUM_TOKENS)
    with imitated_cuda("eager") as machine:
        ours = model_of(directory, device=DEVICE)
        with slots_of(ours, directory, WAYS["prefetched"]):
            greedy(ours, PROMPT, 1)
            machine.counts.clear()
            actual, actual_logits = greedy(ours, PROMPT, NUM_TOKENS)
            hidden_waits = machine.counts.waits_in("models", family.removesuffix("_text"))
    assert actual == tokens
    assert (actual_logits - logits).abs().max() < TOLERANCE * max(1.0, float(logits.abs().max()))
    assert hidden_waits == 0, machine.counts.waits


def test_attention_leaves_out_the_backend_that_plans_for_every_length(mixtral: Case) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    with imitated_cuda():
        model_of(mixtral.directory, device=DEVICE)
    assert not torch._C._get_cudnn_sdp_enabled()


def test_guesses_are_judged_by_what_was_guessed(mixtral: Case) -> None:
    """The memory that a guess is copied to is another layer's by the time that it is judged."""

    def accuracy(device: torch.device) -> float:
        model = model_of(mixtral.directory, device=device)
        with slots_of(model, mixtral.directory, WAYS["prefetched"]):
            greedy(model, PROMPT, NUM_TOKENS)
            prefetcher: Prefetcher = model.dispatcher.orchestration._prefetcher  # type: ignore[attr-defined]
            return prefetcher._accuracy

    on_cpu = accuracy(CPU)
    with imitated_cuda("late"):
        assert accuracy(DEVICE) == pytest.approx(on_cpu)


def test_a_cache_that_changes_its_size_gives_its_memory_back_first() -> None:
    num_tokens = 2**12
    with imitated_cuda() as machine:
        cache = KvCache(1, num_tokens)
        cache.begin(0, torch.tensor([[0]]), torch.zeros(1, 1, dtype=torch.int64, device=DEVICE))
        states = torch.ones(1, 2, 1, 16, device=DEVICE)
        cache.update(states, states, 0)
        block_bytes = num_tokens * 2 * 16 * 4
        machine.memory.reset_peak()
        cache.set_capacity(num_tokens)
        assert machine.memory.peak_bytes < 2.5 * block_bytes, "one of two blocks was held twice"
