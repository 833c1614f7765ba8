"""Where a service's costs come from: the file that fits this machine and model, or a measurement that is then kept."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from fiddler import tensors
from fiddler.checkpoint import Checkpoint
from fiddler.v1 import experts_pb2
from gpu_service.calibration import costs_file
from gpu_service.calibration.costs_file import MachineIdentity, ModelIdentity
from gpu_service.calibration.measure import calibrate, expert_bytes, measured_layers
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.errors import CostsFileError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.planning.latency_model import LatencyModel, Measurements

_log = structlog.get_logger("gpu_service")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class CalibrationTarget:
    """What costs are of."""

    checkpoint: Checkpoint
    client: RemoteExperts
    """Connected to the CPU expert service."""
    description: experts_pb2.DescribeResponse
    """What that service said of itself."""
    device: torch.device
    slots: ExpertSlots | None
    """None where no expert is ever brought to the device."""
    max_rows: int
    """The most rows of a batch."""
    experts_per_token: int


def obtain(target: CalibrationTarget, file: Path | None, recalibrate: bool) -> LatencyModel:
    """Costs from a file, or measured and written to it.

    Args:
        target: What they are of.
        file: What the user names; None: one of this model's own in the user's cache.
        recalibrate: Whether to measure whatever the file holds.

    Raises:
        CostsFileError: The file is no file of costs, or another model's.
        ExpertServiceError: The CPU expert service was lost meanwhile.
    """
    path = file or _cache_file(target)
    measurements = None if recalibrate else _read(target, path, is_named=file is not None)
    if measurements is None:
        dtype = tensors.DTYPES[target.description.dtype]
        measurements = calibrate(
            target.checkpoint,
            target.client,
            dtype,
            target.max_rows,
            max(1, target.experts_per_token),
            target.slots,
            target.device,
        )
        _save(target, path, measurements)
    layer_bytes = [expert_bytes(layer) for layer in target.checkpoint.layers]
    latency = LatencyModel(measurements, layer_bytes, target.max_rows, experts_per_row=max(1, target.experts_per_token))
    _tell(latency, target, path)
    return latency


def _read(target: CalibrationTarget, path: Path, is_named: bool) -> Measurements | None:
    """What the file holds; None where it does not serve."""
    if not path.exists():
        return None
    try:
        machine, measurements = costs_file.load(path, _model(target))
    except CostsFileError as error:
        if is_named:
            raise
        _log.warning("costs are measured anew", reason=str(error))
        return None
    if differences := machine.differences(_machine(target)):
        if not is_named:
            return None  # the machine has changed since
        _log.warning("costs of another machine", file=str(path), measured_there_and_here=differences)
    if target.slots is not None and not (measurements.gpu and measurements.transfer):
        _log.warning("costs are measured anew", reason=f"{path} has none of a device")
        return None
    return measurements


def _save(target: CalibrationTarget, path: Path, measurements: Measurements) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        costs_file.save(path, _model(target), _machine(target), measurements)
    except OSError as error:
        _log.warning("costs are not kept", file=str(path), reason=error.strerror)


def _tell(latency: LatencyModel, target: CalibrationTarget, path: Path) -> None:
    now = latency.costs(0)
    device = {"transfer_ms": _milliseconds(now.transfer), "device_ms": _milliseconds(now.gpu[1])}
    _log.info(
        "costs",
        file=str(path),
        cpu_ms=_milliseconds(now.cpu[1]),
        cpu_ms_of_most_rows=_milliseconds(now.cpu[-1]),
        most_rows=target.max_rows,
        round_trip_ms=_milliseconds(now.round_trip),
        fit_error=round(latency.cpu.fit_error, 3),
        **(device if target.slots else {}),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _model(target: CalibrationTarget) -> ModelIdentity:
    checkpoint = target.checkpoint
    layer = checkpoint.layers[measured_layers(checkpoint)[0]]
    return ModelIdentity(
        checkpoint.model_type,
        checkpoint.fingerprint,
        (layer.hidden_size, layer.intermediate_size),
        tensors.dtype_name(target.description.weight_dtype),
    )


def _machine(target: CalibrationTarget) -> MachineIdentity:
    description = target.description
    return MachineIdentity(
        cpu=cpu_name(_CPUINFO),
        cores=os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else "",
        kernel=description.kernel,
        threads=description.threads,
        dtype=tensors.dtype_name(description.dtype),
    )


def cpu_name(cpuinfo: Path) -> str:
    """The CPU's name, as the kernel tells it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cache_file(target: CalibrationTarget) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    dtype = tensors.dtype_name(target.description.dtype)
    return cache / "fiddler" / f"costs-{target.checkpoint.fingerprint[:16]}-{dtype}-{target.device.type}.json"
