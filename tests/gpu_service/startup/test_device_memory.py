from collections.abc import Sequence
from dataclasses import replace

import pytest

from fiddler.checkpoint import Checkpoint, CheckpointLayer
from gpu_service.startup.device_memory import experts_workspace_bytes
from tests.support.pairs import write_tiny


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Sequence[CheckpointLayer]:
    return Checkpoint.open(write_tiny(tmp_path_factory.mktemp("mixtral"), "mixtral")).layers


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
        assert experts_workspace_bytes(layers, 2, tokens, 2) == expected(int(tokens * share), tokens)
    assert experts_workspace_bytes(layers, layer.num_experts, 512, 2) == expected(512, 512)


def test_the_largest_layer_counts(layers: Sequence[CheckpointLayer]) -> None:
    first = replace(layers[0], intermediate_size=10 * layers[0].intermediate_size)
    assert experts_workspace_bytes([*layers[1:], first], 2, 512, 2) == experts_workspace_bytes([first], 2, 512, 2)
    assert experts_workspace_bytes([first], 2, 512, 2) > experts_workspace_bytes(layers, 2, 512, 2)
