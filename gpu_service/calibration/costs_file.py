"""The costs file: what calibration measured, kept for the next start on the same machine.

    {"format": 1,
     "model": {"model_type": "mixtral", "checkpoint_fingerprint": "<hex>", "expert_shape": [4096, 14336],
               "weight_dtype": "bfloat16"},
     "machine": {"cpu": "...", "cores": 48, "gpu": "...", "kernel": "avx512bf16", "threads": 24, "dtype": "bfloat16"},
     "measurements": {"expert_bytes": 352321536, "cpu": [[1, 0.0131], ...], "hop": [...], "gpu": [...],
                      "transfer": [0.0291, ...]}}

Timings are raw, [rows, seconds] each or seconds alone, so that another version can fit them in another way. A file of
another model is refused. Of another machine it is not: `MachineIdentity.differences` reports what differs.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt

from gpu_service.atomic_write import JsonFile, known_format, read_json, write_json
from gpu_service.errors import CostsFileError
from gpu_service.planning.latency_model import Measurements

FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Identity:
    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Returns, by field, this one's value and the other's, where they differ."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return {name: values for name, values in pairs.items() if values[0] != values[1]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity(_Identity):
    """The model whose experts were measured."""

    model_type: str
    checkpoint_fingerprint: str
    expert_shape: tuple[int, int]
    """(hidden, intermediate) of the measured layers."""
    weight_dtype: str
    """How the experts are stored: a dtype, or the format of coded ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineIdentity(_Identity):
    """The machine that computed them, and how."""

    cpu: str
    cores: int
    gpu: str
    """Empty without a GPU."""
    kernel: str
    """The kernel of the CPU expert service, which also reports its threads."""
    threads: int
    dtype: str
    """The dtype of activations."""


class _Measurements(JsonFile):
    """The fields of `Measurements`, with their bounds."""

    expert_bytes: PositiveInt
    cpu: tuple[tuple[PositiveInt, PositiveFloat], ...] = Field(min_length=1)
    hop: tuple[tuple[PositiveInt, PositiveFloat], ...] = Field(min_length=1)
    gpu: tuple[tuple[PositiveInt, PositiveFloat], ...]
    transfer: tuple[PositiveFloat, ...]


class _Content(JsonFile):
    format: Annotated[int, known_format(FORMAT)]
    model: ModelIdentity
    machine: MachineIdentity
    measurements: _Measurements


def save(path: Path, *, model: ModelIdentity, machine: MachineIdentity, measurements: Measurements) -> None:
    """Writes the file completely or not at all.

    Raises:
        OSError: It cannot be written.
    """
    content = {
        "format": FORMAT,
        "model": asdict(model),
        "machine": asdict(machine),
        "measurements": asdict(measurements),
    }
    write_json(path, content)


def load(path: Path, model: ModelIdentity) -> tuple[MachineIdentity, Measurements]:
    """Reads the file and compares its model.

    Raises:
        CostsFileError: There is no such file, it is not a costs file, or it is another model's.
    """
    content = read_json(path, _Content, CostsFileError)
    if differences := content.model.differences(model):
        name, (found, expected) = next(iter(differences.items()))
        problem = f"is of another model: {found!r}, and the checkpoint's is {expected!r}"
        raise CostsFileError(f"{path}: model.{name}: {problem}")
    return content.machine, Measurements(**dict(content.measurements))
