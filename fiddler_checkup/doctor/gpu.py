"""The GPU: whether PyTorch computes on it and why not, its memory, its PCIe link, and how fast copies arrive."""

import time
from pathlib import Path
from typing import Any, Final

from fiddler.machine.gpus import ROOT, Build, Nvidia, read_build, read_nvidia, why_unusable
from fiddler.sizes import format_bytes
from fiddler_checkup.doctor.finding import Finding, note, ok, warning

_COPY_BYTES: Final = 256 * 2**20
_MIXTRAL_EXPERT_BYTES: Final = 352e6
_ROUNDS: Final = 5
_WITHOUT: Final = "all is computed on the CPU (--device cpu)"


def look(torch: Any, root: Path = ROOT, *, measures: bool = True) -> list[Finding]:
    """The findings, with an imported torch. Files are read under `root`."""
    build, nvidia = read_build(torch), read_nvidia(root)
    findings = usable(build, nvidia)
    if build.num_devices and why_unusable(build, nvidia) is None:
        findings += [_memory(torch), *_link(torch, root)]
        if measures:
            findings.append(copies(copy_bytes_per_second(torch)))
    return findings


def usable(build: Build, nvidia: Nvidia) -> list[Finding]:
    """Whether PyTorch computes on a GPU, and if not, what helps."""
    why = why_unusable(build, nvidia)
    if why is None:
        capability = f", compute capability {'.'.join(map(str, build.capability))}" if build.capability else ""
        more = f", and {build.num_devices - 1} more, which are not used" if build.num_devices > 1 else ""
        driver = f"driver {nvidia.driver or 'of the host'}, CUDA {build.cuda} of PyTorch"
        return [ok("GPU", f"{build.name}{capability}{more}"), ok("driver", driver)]
    if not nvidia.num_gpus and not nvidia.has_device_files:
        return [note("GPU", f"none: {_WITHOUT}")]
    return [
        warning("GPU", f"there is one that PyTorch cannot use, so that {_WITHOUT}", why),
        note("driver", nvidia.driver or "not loaded"),
    ]


def _memory(torch: Any) -> Finding:
    free, total = torch.cuda.mem_get_info(0)
    text = f"{format_bytes(free)} free of {format_bytes(total)}"
    if free < total * 0.9:
        return warning("GPU memory", text, "`nvidia-smi` shows which programs hold the rest")
    return ok("GPU memory", text)


def _link(torch: Any, root: Path) -> list[Finding]:
    properties = torch.cuda.get_device_properties(0)
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return [link(root / "sys/bus/pci/devices" / address)]


def link(device: Path) -> Finding:
    """The width and the speed of a device's PCIe link. At rest the speed is lowered, so only the width is judged."""
    try:
        width, most, speed = (
            (device / name).read_text().strip() for name in ("current_link_width", "max_link_width", "max_link_speed")
        )
    except OSError:
        return note("PCIe", "the system does not say how wide the link is")
    if int(width) < int(most):
        return warning(
            "PCIe",
            f"{width} lanes of {most}, {speed}",
            "put the card into a slot with more lanes: experts are copied slower",
        )
    return ok("PCIe", f"{width} lanes, {speed}")


def copy_bytes_per_second(torch: Any) -> float:
    """From pinned memory to the GPU."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    best = 0.0
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, _COPY_BYTES / (time.perf_counter() - began))
    return best


def copies(bytes_per_second: float) -> Finding:
    """The finding for a measured rate."""
    milliseconds = _MIXTRAL_EXPERT_BYTES / bytes_per_second * 1e3
    text = f"{bytes_per_second / 1e9:.1f} GB/s to the GPU: an expert of Mixtral-8x7B takes {milliseconds:.0f} ms"
    if bytes_per_second < 10e9:
        return warning(
            "copies", text, "PCIe 4 with 16 lanes reaches 25 GB/s; look at the lanes and the generation of the slot"
        )
    return ok("copies", text)
