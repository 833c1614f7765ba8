"""The costs file: what calibration measured, kept for the next start on the same machine. No torch here.

    {"format": 1,
     "model": {"model_type": "mixtral", "checkpoint_fingerprint": "<hex>", "expert_shape": [4096, 14336],
               "weight_dtype": "bfloat16"},
     "machine": {"cpu": "...", "cores": 48, "gpu": "...", "kernel": "avx512bf16", "threads": 24, "dtype": "bfloat16"},
     "measurements": {"expert_bytes": 352321536, "cpu": [[1, 0.0131], ...], "hop": [...], "gpu": [...],
                      "transfer": [0.0291, ...]}}

Timings are raw, [rows, seconds] each or seconds alone, so that another version can fit them otherwise. A file of
another model is refused; what differs from this machine is told, and whether that matters is for others to say.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gpu_service.atomic_write import write_whole
from gpu_service.errors import CostsFileError
from gpu_service.planning.curve import Sample
from gpu_service.planning.latency_model import Measurements

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Whose experts were measured."""

    model_type: str
    checkpoint_fingerprint: str
    expert_shape: tuple[int, int]
    """(hidden, intermediate) of the layers that were measured."""
    weight_dtype: str


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """What computed them, and how."""

    cpu: str
    cores: int
    gpu: str
    """Empty where experts are never brought to a device."""
    kernel: str
    """Of the CPU expert service, as are its threads."""
    threads: int
    dtype: str
    """That activations are in."""

    def differences(self, other: "MachineIdentity") -> dict[str, tuple[object, object]]:
        """By field: this one's value and the other's, where they are not the same."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return {name: values for name, values in pairs.items() if values[0] != values[1]}


def save(path: Path, model: ModelIdentity, machine: MachineIdentity, measurements: Measurements) -> None:
    """Writes the file whole or not at all: who reads it meanwhile sees the old one.

    Raises:
        OSError: It cannot be written.
    """
    content = {
        "format": FORMAT,
        "model": asdict(model),
        "machine": asdict(machine),
        "measurements": asdict(measurements),
    }
    write_whole(path, json.dumps(content, allow_nan=False) + "\n")


def load(path: Path, model: ModelIdentity) -> tuple[MachineIdentity, Measurements]:
    """Reads the file and holds it against the model.

    Raises:
        CostsFileError: There is no such file, it is not a costs file, or it is another model's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CostsFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or of nothing but brackets
        raise CostsFileError(f"{path}: not JSON: {error}") from None
    try:
        if (number := _field(_object(content, "the file"), "format")) != FORMAT:
            raise CostsFileError(f"format: must be {FORMAT}, got {number!r}")
        _check_model(_object(_field(content, "model"), "model"), model)
        machine = _machine(_object(_field(content, "machine"), "machine"))
        return machine, _measurements(_object(_field(content, "measurements"), "measurements"))
    except CostsFileError as error:
        raise CostsFileError(f"{path}: {error}") from None


def _check_model(found: dict[str, Any], expected: ModelIdentity) -> None:
    for name, value in json.loads(json.dumps(asdict(expected))).items():
        if (other := _field(found, name, "model.")) != value:
            raise CostsFileError(f"model.{name}: is of another model: {other!r}, and the checkpoint's is {value!r}")


def _machine(found: dict[str, Any]) -> MachineIdentity:
    values = {}
    for field in fields(MachineIdentity):
        values[field.name] = value = _field(found, field.name, "machine.")
        if type(value) is not field.type:
            kind = "text" if field.type is str else "a whole number"
            raise CostsFileError(f"machine.{field.name}: must be {kind}, got {value!r}")
    return MachineIdentity(**values)


def _measurements(found: dict[str, Any]) -> Measurements:
    expert_bytes = _field(found, "expert_bytes", "measurements.")
    if type(expert_bytes) is not int or expert_bytes < 1:
        raise CostsFileError(f"measurements.expert_bytes: must be a whole number of at least 1, got {expert_bytes!r}")
    transfer = _list(found, "transfer")
    return Measurements(
        expert_bytes,
        cpu=_samples(found, "cpu", at_least=1),
        hop=_samples(found, "hop", at_least=1),
        gpu=_samples(found, "gpu"),
        transfer=tuple(_seconds(value, f"measurements.transfer[{i}]") for i, value in enumerate(transfer)),
    )


def _samples(found: dict[str, Any], name: str, at_least: int = 0) -> tuple[Sample, ...]:
    values, samples = _list(found, name), []
    if len(values) < at_least:
        raise CostsFileError(f"measurements.{name}: holds no timing")
    for i, value in enumerate(values):
        where = f"measurements.{name}[{i}]"
        if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int or value[0] < 1:
            raise CostsFileError(f"{where}: must be [rows, seconds] with rows of at least 1, got {value!r}")
        samples.append((value[0], _seconds(value[1], where)))
    return tuple(samples)


def _seconds(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CostsFileError(f"{where}: seconds must be a number above 0, got {value!r}")
    return float(value)


def _list(found: dict[str, Any], name: str) -> list[Any]:
    value = _field(found, name, "measurements.")
    if not isinstance(value, list):
        raise CostsFileError(f"measurements.{name}: must be a list, got {value!r}")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CostsFileError(f"{where} must hold a JSON object")
    return value


def _field(content: dict[str, Any], name: str, where: str = "") -> Any:
    if name not in content:
        raise CostsFileError(f"{where}{name}: is missing")
    return content[name]
