"""What an encoder-decoder model reads from its configurations, and what its rows hold."""

from pathlib import Path

import pytest
import torch

from cpu_expert_service.kernel import PyTorchKernel
from gpu_service.errors import ModelError
from gpu_service.model_runner.encoder_decoder import num_layers
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.state_cache import StateCache
from tests.support.families import tiny
from tests.support.families.configs import config_of
from tests.support.families.engine import Engine

FAMILY = "switch_transformers"
LAYERS, HEADS, HEAD_SIZE = 3, 4, 16
"""Of the decoder."""
TOKEN_BYTES = LAYERS * HEADS * HEAD_SIZE * 2 * 4


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tiny.write(FAMILY, tmp_path_factory.mktemp("switch")), PyTorchKernel(1))


def _compute(engine: Engine, token_ids: list[int], start: int, row: int) -> torch.Tensor:
    positions = torch.arange(start, start + len(token_ids))[None]
    with torch.inference_mode():
        return engine.model.forward(torch.tensor([token_ids]), positions, first_row=row, wants=Logits.LAST)


def test_a_row_s_tokens_are_measured(engine: Engine) -> None:
    for start in (0, 1):
        _compute(engine, [5], start, 0)
        engine.model.cache.measure(0)
    assert engine.model.cache.token_bytes == TOKEN_BYTES


def test_copies_of_a_row_share_the_prompt_and_go_their_own_ways(engine: Engine) -> None:
    cache = engine.model.cache
    assert isinstance(cache, StateCache)
    _compute(engine, list(range(20, 60)), 0, 0)
    cache.copy(0, 1, start=0, stop=40)
    one, other = _compute(engine, [7], 40, 0), _compute(engine, [8], 40, 1)
    assert not torch.equal(one, other)
    assert torch.equal(_compute(engine, [9], 41, 1), _after(engine, [8, 9]))
    rows = [cache.row(row, 41) for row in (0, 1)]
    keys = [row.cross_attention_cache.layers[0].keys.data_ptr() for row in rows]
    assert keys[0] == keys[1]


def _after(engine: Engine, output: list[int]) -> torch.Tensor:
    """The logits after some output tokens, of a row that was never copied."""
    _compute(engine, list(range(20, 60)), 0, 2)
    return [_compute(engine, [token], 40 + place, 2) for place, token in enumerate(output)][-1]


def test_a_prompt_is_counted_as_many_tokens_as_it_has(engine: Engine) -> None:
    cache = engine.model.cache
    cache.set_capacity(64)
    _compute(engine, list(range(20, 60)), 0, 0)
    assert cache.allocated_bytes == 41 * TOKEN_BYTES  # and the start token


def test_a_decoder_without_a_start_token_is_refused(tmp_path: Path) -> None:
    tiny.write(FAMILY, tmp_path, config={"decoder_start_token_id": None, "bos_token_id": None})
    with pytest.raises(ModelError, match=r"decoder_start_token_id: neither generation_config\.json nor config"):
        Engine(tmp_path, PyTorchKernel(1))


@pytest.mark.parametrize(("family", "layers"), [(FAMILY, 7), ("nllb-moe", 6), ("mixtral", 4), ("dbrx", 3)])
def test_layers_are_counted_in_both(family: str, layers: int) -> None:
    assert num_layers(config_of(family)) == layers
