"""NVIDIA GPUs as the system shows them, and why PyTorch computes on none of them.

Nothing here imports torch: PyTorch's side is given as a `Build`, so that tests can describe machines that are not here.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path("/")
_VENDOR: Final = "0x10de"
_DISPLAY_CLASSES: Final = ("0x0300", "0x0302")
"""VGA and 3D controllers: the first four digits of a PCI class."""
_LEAST_DRIVERS: Final = {11: 450, 12: 525, 13: 580}
"""The first driver branch that runs programs of a major version of CUDA (CUDA Compatibility, NVIDIA)."""
_HIDDEN: Final = ("", "-1", "NoDevFiles")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_VERSION: Final = re.compile(r"\b(\d{3})\.(\d+)(?:\.\d+)?\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """What the system knows of NVIDIA GPUs."""

    num_gpus: int
    """On the PCI bus, whether or not a driver or a container makes them usable."""
    driver: str | None
    """The version of the kernel's module; None if it is not loaded."""
    has_device_files: bool
    """Whether /dev has a GPU: a container has none unless it is given one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What PyTorch was built for, and what it finds."""

    version: str
    cuda: str | None
    """The version of CUDA, e.g. "13.0"; None for a build without it."""
    num_devices: int
    capability: tuple[int, int] | None = None
    """Compute capability of the first device."""
    least_capability: tuple[int, int] | None = None
    """The oldest that the build has code for; None if it does not say."""
    name: str = ""
    """The first device's."""


def read_nvidia(root: Path = ROOT) -> Nvidia:
    """Reads /sys, /proc and /dev under `root`."""
    num_gpus = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        is_display = _read(device / "class")[:6] in _DISPLAY_CLASSES
        num_gpus += is_display and _read(device / "vendor") == _VENDOR
    found = _VERSION.search(_read(root / "proc/driver/nvidia/version"))
    has_device_files = (root / "dev/nvidia0").exists() or (root / "dev/dxg").exists()  # the latter in WSL 2
    return Nvidia(num_gpus=num_gpus, driver=found[0] if found else None, has_device_files=has_device_files)


def read_build(torch: Any) -> Build:
    """What an imported torch was built for, and what it finds."""
    if not torch.cuda.is_available():
        return Build(version=torch.__version__, cuda=torch.version.cuda, num_devices=0)
    archs = [int(digits) for name in torch.cuda.get_arch_list() if (digits := name.removeprefix("sm_")).isdigit()]
    return Build(
        version=torch.__version__,
        cuda=torch.version.cuda,
        num_devices=torch.cuda.device_count(),
        capability=torch.cuda.get_device_capability(0),
        least_capability=divmod(min(archs), 10) if archs else None,
        name=torch.cuda.get_device_name(0),
    )


def why_unusable(build: Build, nvidia: Nvidia, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why PyTorch computes on no GPU, and what helps, as the end of a sentence; None if it can compute on one."""
    if build.num_devices:
        return _why_too_old(build)
    if not nvidia.num_gpus and not nvidia.has_device_files:
        return "this machine has no NVIDIA GPU"
    if build.cuda is None:
        return (
            f"PyTorch {build.version} is built without CUDA; replace it by the CUDA build: `pip install "
            "--force-reinstall torch`, which is that build on Linux"
        )
    if nvidia.driver is None and not nvidia.has_device_files:
        return (
            "the NVIDIA driver is not loaded; install it, or `sudo modprobe nvidia`, until `nvidia-smi` lists the GPU"
        )
    least = _LEAST_DRIVERS.get(_major(build.cuda), 0)
    if nvidia.driver is not None and _major(nvidia.driver) < least:
        return (
            f"the NVIDIA driver {nvidia.driver} is too old for CUDA {build.cuda} of PyTorch {build.version}; update it "
            f"to {least} or later, or install a PyTorch that is built for an older CUDA"
        )
    if not nvidia.has_device_files:
        return "no GPU is passed to this container; start it with compose.gpu.yaml, or `docker run --gpus all`"
    if environment.get(_VISIBLE, "0") in _HIDDEN:
        return f"the environment hides all GPUs: {_VISIBLE} is {environment[_VISIBLE]!r}; unset it"
    return "PyTorch finds none though there is one; `nvidia-smi` says whether the driver works"


def _why_too_old(build: Build) -> str | None:
    capability, least = build.capability, build.least_capability
    if capability is None or least is None or capability >= least:
        return None
    return (
        f"{build.name} has compute capability {capability[0]}.{capability[1]}, and PyTorch {build.version} has code "
        f"for {least[0]}.{least[1]} and later; install a PyTorch that is built for an older CUDA"
    )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
