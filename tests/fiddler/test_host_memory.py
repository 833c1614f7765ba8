from pathlib import Path

import pytest

from fiddler import host_memory
from fiddler.host_memory import HostMemory


def test_memory_is_what_the_control_group_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:  5000 kB\n")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    machine = HostMemory(9999 * 1024, 5000 * 1024)
    assert host_memory.measure() == machine
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 600000\nactive_file 400000\n")
    assert host_memory.measure() == HostMemory(3_000_000, 3_000_000 - 2_500_000 + 1_000_000)
    (tmp_path / "memory.max").write_text("999999999\n")
    assert host_memory.measure() == machine
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory.measure() == machine
