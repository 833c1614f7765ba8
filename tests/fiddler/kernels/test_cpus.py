"""Which CPUs compute, on machines that are described."""

import math
from pathlib import Path

import pytest

from fiddler.kernels.cpus import (
    CpuListError,
    Topology,
    choose_cpus,
    format_cpu_list,
    number_nodes,
    parse_cpu_list,
    read_topology,
)
from tests.support.machines import write_files

TWO_SOCKETS = Topology(
    nodes={cpu: cpu % 8 // 4 for cpu in range(16)},  # 8 cores on 2 nodes; CPUs 8 to 15 are their second threads
    siblings={cpu: cpu // 8 for cpu in range(16)},
    quota=math.inf,
)


@pytest.mark.parametrize(
    ("text", "cpus"), [("", []), ("3", [3]), ("0-2", [0, 1, 2]), ("8,0-1\n", [0, 1, 8]), ("1,1-2", [1, 2])]
)
def test_a_list_of_cpus_is_read_as_linux_writes_it(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1;2"])
def test_what_is_no_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(CpuListError, match=f"^--cpus: '{text}' is not a list of CPUs such as 0-3,8$"):
        parse_cpu_list(text)


def test_every_cpu_computes_where_nobody_says_otherwise() -> None:
    assert choose_cpus(TWO_SOCKETS) == list(range(16))


@pytest.mark.parametrize(
    ("threads", "cpus"), [(1, [0]), (2, [0, 4]), (4, [0, 1, 4, 5]), (8, list(range(8))), (9, list(range(9)))]
)
def test_nodes_take_turns_and_whole_cores_come_first(threads: int, cpus: list[int]) -> None:
    assert choose_cpus(TWO_SOCKETS, threads=threads) == cpus


def test_only_listed_cpus_compute() -> None:
    assert choose_cpus(TWO_SOCKETS, "2-3,10") == [2, 3, 10]
    assert choose_cpus(TWO_SOCKETS, "2-3,10", threads=2) == [2, 3]


def test_a_cpu_that_may_not_be_used_is_refused() -> None:
    with pytest.raises(CpuListError, match=r"^--cpus 0,16: this process may not use CPU 16, only 0-15$"):
        choose_cpus(TWO_SOCKETS, "0,16")


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (1.0, 1), (2.5, 2), (99.0, 16)])
def test_a_quota_is_rounded_down_to_whole_threads(quota: float, count: int) -> None:
    limited = Topology(TWO_SOCKETS.nodes, TWO_SOCKETS.siblings, quota)
    assert len(choose_cpus(limited)) == count
    assert len(choose_cpus(limited, threads=3)) == 3


def test_nodes_that_are_used_are_numbered_from_0() -> None:
    assert number_nodes(TWO_SOCKETS, [0, 4, 5]) == [0, 1, 1]
    assert number_nodes(TWO_SOCKETS, [4, 5]) == [0, 0]


def test_nodes_and_siblings_are_read_from_the_system(tmp_path: Path) -> None:
    cpus = sorted(read_topology().nodes)
    last = cpus[-1]
    system = "sys/devices/system"
    write_files(
        tmp_path,
        {
            f"{system}/node/node3/cpulist": format_cpu_list(cpus),
            f"{system}/cpu/cpu{last}/topology/thread_siblings_list": format_cpu_list({max(0, last - 1), last}),
            "proc/self/cgroup": "0::/box",
            "sys/fs/cgroup/box/cpu.max": "50000 100000",
        },
    )
    topology = read_topology(tmp_path)
    assert set(topology.nodes.values()) == {3}
    assert topology.siblings[last] == (1 if last else 0)
    assert topology.quota == 0.5
