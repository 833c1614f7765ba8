"""Experts in formats that are not stored as they are computed become copies in the service's memory, if they fit."""

from pathlib import Path

import pytest

from cpu_expert_service.kernel import PyTorchKernel
from cpu_expert_service.ram import NotEnoughMemoryError
from cpu_expert_service.runner import Runner
from fiddler import host_memory
from fiddler.checkpoint import Checkpoint
from tests.support import checkpoints, coded
from tests.support.in_process_service import value


def _written(directory: Path, name: str) -> Checkpoint:
    plain = checkpoints.write("qwen3_moe", directory / "plain", hidden_size=64, moe_intermediate_size=96)
    return Checkpoint.open(coded.rewrite(plain, directory / "coded", name, lambda tensor: ".experts." in tensor))


def _free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(1 << 30, num_bytes))


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_copies_that_fit_are_made_and_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _written(tmp_path, name)
    _free(monkeypatch, checkpoint.repacked_bytes)
    steps: list[tuple[int, int]] = []
    runner = Runner(checkpoint, PyTorchKernel(1), lambda done, total: steps.append((done, total)))
    own_bytes = sum(expert.nbytes for weights in runner.weights for expert in weights.experts)
    assert checkpoint.repacked_bytes == own_bytes
    assert value("fiddler_expert_repacked_bytes") == own_bytes
    assert len(steps) == len(checkpoint.layers)
    assert steps[-1] == (own_bytes, own_bytes)


def test_copies_that_do_not_fit_are_refused_before_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _written(tmp_path, "gptq")
    _free(monkeypatch, checkpoint.repacked_bytes - 1)
    monkeypatch.setattr("cpu_expert_service.runner.layer_weights", None)
    with pytest.raises(NotEnoughMemoryError, match=r"gro.* need .* and .* are free .*lists as computed in place"):
        Runner(checkpoint, PyTorchKernel(1))


def test_formats_that_are_computed_where_they_are_stored_need_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = _written(tmp_path, "int4 group 32")
    _free(monkeypatch, 0)
    steps: list[tuple[int, int]] = []
    Runner(checkpoint, PyTorchKernel(1), lambda done, total: steps.append((done, total)))
    assert checkpoint.repacked_bytes == value("fiddler_expert_repacked_bytes") == 0
    assert steps == []


@pytest.mark.parametrize("name", [name for name in coded.FORMATS if name.startswith(("gptq", "awq"))])
def test_rows_of_every_plane_are_adjacent_as_kernels_read_them(name: str, tmp_path: Path) -> None:
    runner = Runner(_written(tmp_path, name), PyTorchKernel(1))
    planes = [plane for weights in runner.weights for expert in weights.experts for _, plane in expert.tensors()]
    assert {plane.stride() for plane in planes} == {(plane.shape[1], 1) for plane in planes}
