"""Why PyTorch computes on no GPU, on machines that are pretended."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fiddler.machine.gpus import Build, Nvidia, read_build, read_nvidia, why_unusable

CUDA = Build(version="2.13.0", cuda="13.0", num_devices=0)
CPU = Build(version="2.13.0+cpu", cuda=None, num_devices=0)
NONE = Nvidia(num_gpus=0, driver=None, has_device_files=False)
WORKING = Nvidia(num_gpus=1, driver="580.65.06", has_device_files=True)


@dataclass(frozen=True)
class Case:
    build: Build
    nvidia: Nvidia
    text: str
    environment: tuple[tuple[str, str], ...] = ()


CASES = {
    "no GPU": Case(CUDA, NONE, "this machine has no NVIDIA GPU"),
    "a build without CUDA": Case(
        CPU, WORKING, "PyTorch 2.13.0+cpu is built without CUDA; replace it by the CUDA build"
    ),
    "no driver": Case(CUDA, Nvidia(num_gpus=1, driver=None, has_device_files=False), "the NVIDIA driver is not loaded"),
    "an old driver": Case(
        CUDA,
        Nvidia(num_gpus=1, driver="535.183.01", has_device_files=True),
        "the NVIDIA driver 535.183.01 is too old for CUDA 13.0 of PyTorch 2.13.0; update it to 580 or later",
    ),
    "a container without the GPU": Case(
        CUDA, Nvidia(num_gpus=1, driver="580.65.06", has_device_files=False), "no GPU is passed to this container"
    ),
    "hidden": Case(
        CUDA, WORKING, "the environment hides all GPUs: CUDA_VISIBLE_DEVICES is ''", (("CUDA_VISIBLE_DEVICES", ""),)
    ),
    "unknown": Case(CUDA, WORKING, "PyTorch finds none though there is one; `nvidia-smi` says"),
    "an old GPU": Case(
        Build(
            version="2.13.0", cuda="13.0", num_devices=1, capability=(6, 1), least_capability=(7, 5), name="GTX 1080"
        ),
        WORKING,
        "GTX 1080 has compute capability 6.1, and PyTorch 2.13.0 has code for 7.5 and later",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reason_says_what_helps(name: str) -> None:
    case = CASES[name]
    why = why_unusable(case.build, case.nvidia, dict(case.environment))
    assert why is not None
    assert why.startswith(case.text)


@pytest.mark.parametrize("capability", [(7, 5), (12, 0), None])
def test_a_gpu_that_works_has_no_reason(capability: tuple[int, int] | None) -> None:
    build = Build(version="2.13.0", cuda="13.0", num_devices=1, capability=capability, least_capability=(7, 5))
    assert why_unusable(build, WORKING, {}) is None


def test_the_system_is_read(tmp_path: Path) -> None:
    assert read_nvidia(tmp_path) == NONE
    for number, (vendor, kind) in enumerate([("0x10de", "0x030000"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]):
        device = tmp_path / "sys/bus/pci/devices" / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    driver = tmp_path / "proc/driver/nvidia/version"
    driver.parent.mkdir(parents=True)
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12.2.0\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert read_nvidia(tmp_path) == WORKING


def test_the_build_is_read() -> None:
    cuda: Any = SimpleNamespace(
        is_available=lambda: True,
        get_arch_list=lambda: ["sm_75", "sm_90", "sm_90a", "compute_120", "sm_120"],
        device_count=lambda: 2,
        get_device_capability=lambda index: (8, 9),
        get_device_name=lambda index: "RTX 4090",
    )
    torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0"), __version__="2.13.0")
    assert read_build(torch) == Build(
        version="2.13.0", cuda="13.0", num_devices=2, capability=(8, 9), least_capability=(7, 5), name="RTX 4090"
    )
    cuda.is_available = lambda: False
    assert read_build(torch) == Build(version="2.13.0", cuda="13.0", num_devices=0)
