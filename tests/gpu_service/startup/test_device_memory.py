from collections.abc import Sequence
from dataclasses import replace

import pytest

from fiddler.checkpoint import Checkpoint, CheckpointLayer
from gpu_service.startup.device_memory import experts_workspace_bytes
from tests.support.pairs import write_tiny


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
