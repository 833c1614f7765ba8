"""Copies of experts in memory: whether there is room for them, and which node holds what."""

import errno
import mmap
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from cpu_expert_service.ram import NotEnoughMemoryError, copy_layers
from fiddler import host_memory
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import NativeUnavailableError, load, node_ranges
from tests.support.machines import memory_v1, memory_v2, write_files
from tests.support.weights import plain

EXPERT = ExpertWeights(torch.zeros(64, 32), torch.zeros(64, 32), torch.zeros(32, 64))
LAYER = LayerWeights((EXPERT,) * 4, "silu")
NUM_BYTES = 4 * 3 * 64 * 32 * 4


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        ("0::/", memory_v2("sys/fs/cgroup", 5 * 2**29, 5 * 2**29 - NUM_BYTES + 1)),
        ("0::/a.slice", memory_v2("sys/fs/cgroup/a.slice", 5 * 2**29, 5 * 2**29 - NUM_BYTES + 1)),
        ("4:memory:/docker/a", memory_v1("sys/fs/cgroup/memory", 5 * 2**29, 5 * 2**29 - NUM_BYTES + 1)),
    ],
    ids=["v2", "nested", "v1"],
)
def test_copies_that_do_not_fit_in_the_control_group_are_refused_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, limit: dict[str, str]
) -> None:
    write_files(tmp_path, {"proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: 99999999 kB", "proc/self/cgroup": own})
    write_files(tmp_path, limit)
    monkeypatch.setattr(host_memory, "measure", partial(host_memory.measure, tmp_path))
    progress = Mock()
    with pytest.raises(NotEnoughMemoryError) as caught:
        copy_layers([LAYER], None, progress)
    assert str(caught.value) == (
        "--weights ram: copies of the experts need 96 KiB, and 96 KiB are free of the 2.5 GiB of memory that this "
        "process may use; set --weights mmap, which reads them from the page cache, or raise the limit"
    )
    progress.assert_not_called()


def test_memory_that_the_system_refuses_is_reported_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(NotEnoughMemoryError, match=r"^--weights ram: cannot allocate 96 KiB: Cannot allocate memory; "):
        copy_layers([LAYER], None, Mock())


def test_copies_that_just_fit_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"proc/meminfo": f"MemTotal: 2000000 kB\nMemAvailable: {NUM_BYTES // 1024} kB"})
    monkeypatch.setattr(host_memory, "measure", partial(host_memory.measure, tmp_path))
    (copy,) = copy_layers([LAYER], None, Mock())
    assert torch.equal(plain(copy.experts[3].up), plain(EXPERT.up))


def test_each_output_belongs_to_one_node() -> None:
    try:
        load()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    for num_nodes in (1, 2, 3, 8):
        for outputs in (1, 63, 64, 65, 1000, 14336):
            ranges = node_ranges(outputs, num_nodes)
            assert [output for begin, end in ranges for output in range(begin, end)] == list(range(outputs))
