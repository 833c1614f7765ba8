"""Loads measured costs from the file for this machine and model, or measures them and saves the file."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from fiddler import tensors
from fiddler.checkpoint import Checkpoint
from fiddler.running.progress import Stage
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
    """What costs are measured for: a model, its two sides, and the batches they are given."""

    checkpoint: Checkpoint
    client: RemoteExperts
    """Connected to the CPU expert service."""
    description: experts_pb2.DescribeResponse
    """That service's description of itself."""
    device: torch.device
    slots: ExpertSlots | None
    """None if no expert is ever copied to the device."""
    max_rows: int
    """The most rows of a batch."""
    experts_per_token: int


def obtain(target: CalibrationTarget, file: Path | None, recalibrate: bool) -> LatencyModel:
    """Loads costs from a file, or measures them and saves the file.

    Args:
        target: What the costs are for.
        file: The file that the user names; None: a file for this model in the user's cache.
        recalibrate: Whether to measure even if there is a file.

    Raises:
        CostsFileError: The file that the user names is not a costs file, or another model's.
        ExpertServiceError: The CPU expert service was lost meanwhile.
    """
    path = file or _cache_file(target)
    experts_per_row = max(1, target.experts_per_token)
    event = "costs loaded"
    measurements = None if recalibrate else _read(target, path, is_named=file is not None)
    if measurements is None:
        event = "costs measured"
        with Stage("measuring what experts cost"):
            measurements = calibrate(
                target.checkpoint,
                target.client,
                dtype=tensors.DTYPES[target.description.dtype],
                max_rows=target.max_rows,
                experts_per_row=experts_per_row,
                slots=target.slots,
                device=target.device,
            )
        _save(target, path, measurements)
    layer_bytes = [expert_bytes(layer) for layer in target.checkpoint.layers]
    latency = LatencyModel(measurements, layer_bytes, target.max_rows, experts_per_row=experts_per_row)
    _log_costs(event, latency, target, path=path)
    return latency


def check_file(path: Path, checkpoint: Checkpoint) -> None:
    """Checks the file that a user names, if it exists.

    Raises:
        CostsFileError: It is not a costs file, or another model's.
    """
    if path.exists():
        try:
            costs_file.load(path, _model(checkpoint))
        except CostsFileError as error:
            raise _unusable(error) from None


def _unusable(error: CostsFileError) -> CostsFileError:
    return CostsFileError(f"--costs: {error}; name another file, or replace this one with --recalibrate")


def _read(target: CalibrationTarget, path: Path, is_named: bool) -> Measurements | None:
    """Returns what the file holds; None if there is none, or if it cannot be used and the user did not name it."""
    if not path.exists():
        return None
    try:
        machine, measurements = costs_file.load(path, _model(target.checkpoint))
    except CostsFileError as error:
        if is_named:
            raise _unusable(error) from None
        _log.warning("measuring costs again", reason=str(error))
        return None
    if differences := machine.differences(_machine(target)):
        if not is_named:
            return None  # the machine has changed
        _log.warning("using costs of another machine", file=str(path), measured_there_and_here=differences)
    if target.slots is not None and not (measurements.gpu and measurements.transfer):
        _log.warning("measuring costs again", reason=f"{path} holds no costs of a device")
        return None
    return measurements


def _save(target: CalibrationTarget, path: Path, measurements: Measurements) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        costs_file.save(path, model=_model(target.checkpoint), machine=_machine(target), measurements=measurements)
    except OSError as error:
        _log.warning("saving costs failed", file=str(path), reason=error.strerror)


def _log_costs(event: str, latency: LatencyModel, target: CalibrationTarget, *, path: Path) -> None:
    now = latency.costs(0)
    device = {"copy_ms": _milliseconds(now.transfer), "device_ms_per_row": _milliseconds(now.gpu[1])}
    _log.info(
        event,
        file=str(path),
        cpu_ms_of_one_row=_milliseconds(now.cpu[1]),
        **{f"cpu_ms_of_{target.max_rows}_rows": _milliseconds(now.cpu[-1])},
        round_trip_ms=_milliseconds(now.round_trip),
        percent_off_in_the_fit=round(100 * latency.cpu.fit_error),
        **(device if target.slots else {}),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _model(checkpoint: Checkpoint) -> ModelIdentity:
    layer = checkpoint.layers[measured_layers(checkpoint)[0]]
    return ModelIdentity(
        model_type=checkpoint.model_type,
        checkpoint_fingerprint=checkpoint.fingerprint,
        expert_shape=(layer.hidden_size, layer.intermediate_size),
        weight_dtype=checkpoint.weight_format,
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
    """Returns the CPU's name, as the Linux kernel reports it."""
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
