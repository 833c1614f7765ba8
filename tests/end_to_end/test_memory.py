"""How much memory both services use for a checkpoint of a gigabyte. benchmarks/memory.py prints the figures."""

from pathlib import Path

import pytest

from client import Client
from fiddler.checkpoint import Checkpoint
from pair import Pair
from tests.support import checkpoints

GIGABYTE = 10**9
FIXED_BYTES = 600 * 10**6
"""What the GPU service may use for Python, torch and transformers."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = checkpoints.write_large(tmp_path_factory.mktemp("large"), GIGABYTE)
    checkpoints.write_tokenizer(directory)
    return directory


def _bytes(pair: Pair, service: str, field: str) -> int:
    status = Path(f"/proc/{pair.processes[service].pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def test_no_service_holds_a_copy_of_the_experts(large: Path, tiny: Path) -> None:
    checkpoint = Checkpoint.open(large)
    with Pair(tiny, gpu_arguments=("--device", "cpu")) as pair:
        tiny_anonymous = _bytes(pair, "cpu_expert_service", "RssAnon")
    with Pair(large, gpu_arguments=("--device", "cpu")) as pair:
        with Client(pair.target) as client:
            client.generate([5, 6, 7], max_tokens=2).text()
        gpu_resident = _bytes(pair, "gpu_service", "VmRSS")
        cpu_anonymous = _bytes(pair, "cpu_expert_service", "RssAnon")
        cpu_mapped = _bytes(pair, "cpu_expert_service", "RssFile")
    assert gpu_resident <= 1.25 * checkpoint.dense_bytes + FIXED_BYTES
    assert cpu_mapped > checkpoint.expert_bytes, "all experts were read in, and are the files' own pages"
    # the memory of large messages and of PyTorch's kernels differs by machine; a copy of one layer would be a fifth
    assert cpu_anonymous - tiny_anonymous < 0.1 * checkpoint.expert_bytes
