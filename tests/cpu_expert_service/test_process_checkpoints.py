"""The process reports a wrong checkpoint in one line, and never serves it."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support import checkpoints, processes
from tests.support.tampering import SINGLE_FILE, edit_config, edit_tensors, write_raw

GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
SHARD = "model-00002-of-00002.safetensors"


def remove_experts(directory: Path) -> None:
    edit_config(directory, n_routed_experts=None, n_shared_experts=None, num_experts_per_tok=None, model_type="llama")
    edit_tensors(directory, lambda tensors: {name: t for name, t in tensors.items() if "expert" not in name})


def rename_experts(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name.replace(".experts.", ".experts.e"): t for name, t in tensors.items()})


def lose_a_shard(directory: Path) -> None:
    checkpoints.shard(directory, 2)
    (directory / SHARD).unlink()


def truncate(directory: Path) -> None:
    path = directory / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def reshape(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {GATE: tensors[GATE][:-1].contiguous()})


def drop_a_tensor(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != GATE})


def change_a_dtype(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors | {GATE: tensors[GATE].to(torch.int8)})


# the damage to the directory, and the words that the line must contain
DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing directory": (lambda directory: shutil.rmtree(directory), ("does not exist",)),
    "no config.json": (lambda directory: (directory / "config.json").unlink(), ("config.json", "missing")),
    "no experts": (remove_experts, ("config.json", "no experts")),
    "unknown naming": (rename_experts, ("config.json", "mlp.experts.e0.down_proj.weight")),
    "missing shard": (lose_a_shard, (SHARD,)),
    "truncated file": (truncate, (SINGLE_FILE,)),
    "corrupt header": (lambda directory: write_raw(directory / SINGLE_FILE, b"{not json"), (SINGLE_FILE,)),
    "wrong shape": (reshape, (SINGLE_FILE, GATE)),
    "missing tensor": (drop_a_tensor, (GATE,)),
    "wrong dtype": (change_a_dtype, (SINGLE_FILE, GATE)),
    "unknown activation": (lambda directory: edit_config(directory, hidden_act="tanhshrink"), ("tanhshrink",)),
}


@pytest.fixture(scope="module")
def outcomes(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Future[processes.Outcome]]]]:
    """All processes, two at a time."""
    root = tmp_path_factory.mktemp("damaged")

    def run(directory: Path) -> processes.Outcome:
        with processes.start(directory, f"unix:{directory}.sock") as process:
            return process.outcome()

    with ThreadPoolExecutor(2) as threads:
        started = {}
        for number, (name, (damage, _)) in enumerate(DAMAGES.items()):
            directory = Path(shutil.copytree(tiny, root / str(number)))
            damage(directory)
            started[name] = directory, threads.submit(run, directory)
        yield started


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_checkpoint_is_told_in_one_line(
    outcomes: dict[str, tuple[Path, Future[processes.Outcome]]], name: str
) -> None:
    directory, future = outcomes[name]
    outcome = future.result()
    assert outcome.status == 1
    (line,) = outcome.errors.splitlines()
    assert line.startswith("cpu_expert_service: ")
    for word in DAMAGES[name][1]:
        assert word in line
    if name != "unknown activation":
        assert str(directory) in line
    assert not Path(f"{directory}.sock").exists()
