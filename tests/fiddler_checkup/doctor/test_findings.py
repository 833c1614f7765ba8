"""What is said of machines that are pretended, and what to do about them."""

import os
import socket
import time
from pathlib import Path

import pytest

from fiddler.kernels import native
from fiddler.kernels.cpus import choose_cpus, read_topology
from fiddler.machine.gpus import Build, Nvidia
from fiddler_checkup.doctor import cpu, gpu, memory, system
from fiddler_checkup.doctor.finding import Finding, Level

CPUINFO = "processor : 0\nmodel name : A CPU\nflags : fpu avx2 avx512bw avx512_bf16 amx_bf16\n"


def _machine(root: Path, **files: str) -> Path:
    """A root with files by path, with __ for a slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def _of(findings: list[Finding], subject: str) -> Finding:
    (found,) = (finding for finding in findings if finding.subject == subject)
    return found


@pytest.mark.parametrize(
    ("tiers", "level", "text"),
    [
        (
            ("scalar", "avx2", "avx512", "avx512_bf16", "amx"),
            Level.OK,
            "amx on A CPU (of avx2, avx512, avx512_bf16, amx)",
        ),
        (("scalar", "avx2"), Level.WARNING, "avx2, though A CPU has avx512, avx512_bf16, amx"),
        (("scalar",), Level.WARNING, "PyTorch's: A CPU has no AVX2"),
    ],
)
def test_the_kernel_that_runs(
    tiers: tuple[str, ...], level: Level, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available_tiers", lambda: tiers)
    found = _of(cpu.look(_machine(tmp_path, proc__cpuinfo=CPUINFO)), "kernel")
    assert (found.level, found.text) == (level, text)
    assert bool(found.advice) is (level is Level.WARNING)


def test_a_missing_library_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise native.NativeUnavailableError("there was no C++ compiler")

    monkeypatch.setattr(native, "available_tiers", missing)
    found = _of(cpu.look(tmp_path), "kernel")
    assert found.level is Level.WARNING
    assert "there was no C++ compiler" in found.text
    assert "sudo apt install g++" in found.advice


def test_nodes_and_the_governor(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("this process may use one CPU only, and two nodes need two")
    root = _machine(
        tmp_path,
        sys__devices__system__node__node0__cpulist=f"{cpus[0]}\n",
        sys__devices__system__node__node1__cpulist=f"{cpus[1]}\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="powersave\n",
    )
    findings = cpu.look(root)
    assert (_of(findings, "NUMA").text, _of(findings, "NUMA").level) == ("2 nodes", Level.NOTE)
    assert _of(findings, "frequency").level is Level.WARNING


@pytest.mark.parametrize(("available", "level"), [(60, Level.OK), (10, Level.WARNING)])
def test_memory_that_is_in_use_is_told(available: int, level: Level, tmp_path: Path) -> None:
    kib = 2**20
    root = _machine(tmp_path, proc__meminfo=f"MemTotal: {64 * kib} kB\nMemAvailable: {available * kib} kB\n")
    found = _of(memory.look(root, measures=False), "memory")
    assert (found.text, found.level) == (f"{available} GiB free of 64 GiB", level)


@pytest.mark.parametrize(
    ("mode", "level"), [("always [madvise] never", Level.OK), ("always madvise [never]", Level.WARNING)]
)
def test_huge_pages(mode: str, level: Level, tmp_path: Path) -> None:
    root = _machine(tmp_path, sys__kernel__mm__transparent_hugepage__enabled=mode)
    assert _of(memory.look(root, measures=False), "huge pages").level is level


@pytest.mark.parametrize(("rate", "level", "tokens"), [(60e9, Level.OK, "20.0"), (9e9, Level.WARNING, "3.0")])
def test_a_bandwidth_is_told_in_tokens(rate: float, level: Level, tokens: str) -> None:
    found = memory.bandwidth(memory.Reading(rate, num_threads=4))
    assert found.level is level
    assert "GB/s read by 4 threads together: " in found.text
    assert found.text.endswith(f"decodes at most {tokens} tokens/s")


def test_a_bandwidth_that_others_took_is_not_blamed_on_the_memory() -> None:
    found = memory.bandwidth(memory.Reading(9e9, num_threads=1, busy_share=0.25))
    assert found.level is Level.WARNING
    assert found.text.startswith("9.0 GB/s read by one thread: ")
    assert found.text.endswith("; other programs had the processors for 75 % of that time")
    assert "dmidecode" not in found.advice


def test_what_a_thread_did_not_run_is_not_busy() -> None:
    assert memory._read(lambda: time.sleep(0.05), 1).busy_share < 0.5


def test_the_bandwidth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_READ_BYTES", 2**22)
    reading = memory.measure()
    assert 1e8 < reading.bytes_per_second < 1e13
    assert reading.num_threads in {1, len(choose_cpus(read_topology()))}


WORKING = Nvidia(num_gpus=1, driver="580.65.06", has_device_files=True)


def test_a_gpu_that_cannot_be_used_says_why() -> None:
    found = gpu.usable(Build(version="2.13.0+cpu", cuda=None, num_devices=0), WORKING)
    assert _of(found, "GPU").level is Level.WARNING
    assert "built without CUDA" in _of(found, "GPU").advice
    build = Build(
        version="2.13.0", cuda="13.0", num_devices=2, capability=(8, 9), least_capability=(7, 5), name="A GPU"
    )
    assert [finding.text for finding in gpu.usable(build, WORKING)] == [
        "A GPU, compute capability 8.9, and 1 more, which are not used",
        "driver 580.65.06, CUDA 13.0 of PyTorch",
    ]
    (none,) = gpu.usable(
        build=Build(version="2", cuda=None, num_devices=0),
        nvidia=Nvidia(num_gpus=0, driver=None, has_device_files=False),
    )
    assert none.level is Level.NOTE


@pytest.mark.parametrize(("width", "level"), [("16", Level.OK), ("4", Level.WARNING)])
def test_a_narrow_link_is_warned_of(width: str, level: Level, tmp_path: Path) -> None:
    assert (
        gpu.link(_machine(tmp_path, current_link_width=width, max_link_width="16", max_link_speed="16.0 GT/s")).level
        is level
    )
    assert gpu.link(tmp_path / "nothing").level is Level.NOTE
    assert gpu.copies(25e9).text.endswith("takes 14 ms")
    assert gpu.copies(3e9).level is Level.WARNING


def test_a_port_in_use_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(system, "PORTS", {port: "gRPC"})
        (found,) = system.ports()
    assert found.level is Level.WARNING
    assert found.text.startswith(
        f"{port} (gRPC): cannot serve on 127.0.0.1:{port}: Address already in use, by process "
    )
    assert [each.text for each in system.ports()] == [f"{port} free"]


def test_docker_without_an_engine_compose_or_runtime() -> None:
    def answers(**known: str) -> system.Run:
        return lambda *command: known.get(command[1])

    assert system.docker(answers())[0].text == "the engine does not answer"
    assert system.docker(answers(version="28.0"))[0].text == "engine 28.0, without Compose v2"
    both = {"version": "28.0", "compose": "2.39"}
    assert [each.level for each in system.docker(answers(**both))] == [Level.OK]
    without = system.docker(answers(**both, info='{"Runtimes": {"runc": {}}}'), has_gpu=True)[1]
    assert (without.level, "nvidia-ctk" in without.advice) == (Level.WARNING, True)
    assert system.docker(answers(**both, info='{"Runtimes": {"nvidia": {}}}'), has_gpu=True)[1].level is Level.OK


def test_sockets_disk_versions_and_wsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.sockets(tmp_path).level is Level.OK
    assert system.sockets(tmp_path / "missing").level is Level.PROBLEM
    assert system.disk(tmp_path / "models" / "hub").text.endswith(f"free for models ({tmp_path})")
    assert system.versions()[0].level is Level.OK
    monkeypatch.setattr(system, "_LIBRARIES", ("torch", "no-such-library"))
    (missing,) = system.versions()
    assert (missing.level, missing.text) == (Level.PROBLEM, "no-such-library not installed")
    assert system.wsl(_machine(tmp_path, proc__version="Linux version 6.6 (Microsoft)"))[0].subject == "WSL 2"
    assert system.wsl(tmp_path / "missing") == []
