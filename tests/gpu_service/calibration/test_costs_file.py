import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_service.calibration import costs_file
from gpu_service.calibration.costs_file import MachineIdentity, ModelIdentity
from gpu_service.errors import CostsFileError
from gpu_service.planning.latency_model import Measurements

MODEL = ModelIdentity(
    model_type="mixtral", checkpoint_fingerprint="abc", expert_shape=(64, 96), weight_dtype="bfloat16"
)
MACHINE = MachineIdentity(cpu="a CPU", cores=48, gpu="a GPU", kernel="avx512", threads=24, dtype="bfloat16")
MEASURED = Measurements(
    expert_bytes=100, cpu=((1, 0.01), (2, 0.02)), hop=((1, 0.001),), gpu=((1, 0.0001),), transfer=(0.02, 0.03)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    costs_file.save(path, model=MODEL, machine=MACHINE, measurements=MEASURED)
    return path


def _edit(path: Path, *keys: Any, value: Any = None) -> None:
    """Sets the value under the keys, or removes it if none is given."""
    content = target = json.loads(path.read_text())
    for key in keys[:-1]:
        target = target[key]
    if value is None:
        del target[keys[-1]]
    else:
        target[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_what_is_saved_is_loaded(path: Path) -> None:
    assert costs_file.load(path, MODEL) == (MACHINE, MEASURED)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_without_a_device_is_loaded(path: Path) -> None:
    measured = replace(MEASURED, gpu=(), transfer=())
    costs_file.save(path, model=MODEL, machine=MACHINE, measurements=measured)
    assert costs_file.load(path, MODEL)[1] == measured


def test_a_file_that_cannot_be_replaced_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_text()
    infinite = replace(MEASURED, transfer=(float("inf"),))
    with pytest.raises(ValueError, match="JSON compliant"):
        costs_file.save(path, model=MODEL, machine=MACHINE, measurements=infinite)
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "qwen3_moe"),
        ("checkpoint_fingerprint", "def"),
        ("expert_shape", (64, 97)),
        ("weight_dtype", "float32"),
        ("weight_dtype", "int4 group 32"),
    ],
)
def test_a_file_of_another_model_is_refused(path: Path, field: str, value: Any) -> None:
    with pytest.raises(CostsFileError, match=rf"costs.json: model.{field}: is of another model: "):
        costs_file.load(path, replace(MODEL, **{field: value}))


def test_a_file_of_another_machine_is_loaded_and_what_differs_is_told(path: Path) -> None:
    here = replace(MACHINE, cpu="another CPU", threads=2)
    machine, _ = costs_file.load(path, MODEL)
    assert machine.differences(here) == {"cpu": ("a CPU", "another CPU"), "threads": (24, 2)}
    assert machine.differences(MACHINE) == {}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, r"format: must be 1, got 2"),
        (("format",), None, r"format: is missing"),
        (("format",), True, r"format: must be a valid integer, got True"),
        (("machine", "sockets"), 2, r"machine\.sockets: is not a field of this file"),
        (("measurements", "disk"), [], r"measurements\.disk: is not a field of this file"),
        (("model",), None, r"model: is missing"),
        (("model",), [], r"model: must be an object, got \[\]"),
        (("model", "weight_dtype"), None, r"model\.weight_dtype: is missing"),
        (("machine",), None, r"machine: is missing"),
        (("machine", "kernel"), None, r"machine\.kernel: is missing"),
        (("machine", "cores"), "48", r"machine\.cores: must be a valid integer, got '48'"),
        (("machine", "gpu"), 1, r"machine\.gpu: must be a valid string, got 1"),
        (("measurements",), 1, r"measurements: must be an object, got 1"),
        (("measurements", "expert_bytes"), 0, r"measurements\.expert_bytes: must be greater than 0, got 0"),
        (("measurements", "cpu"), None, r"measurements\.cpu: is missing"),
        (("measurements", "cpu"), {}, r"measurements\.cpu: must be a valid array, got {}"),
        (("measurements", "cpu"), [], r"measurements\.cpu: must have at least 1 item, got \[\]"),
        (("measurements", "hop"), [], r"measurements\.hop: must have at least 1 item, got \[\]"),
        (("measurements", "cpu", 1), [1, 2, 3], r"measurements\.cpu\[1\]: must have at most 2 items, got \[1, 2, 3\]"),
        (("measurements", "cpu", 1), [2], r"measurements\.cpu\[1\]\[1\]: is missing"),
        (("measurements", "cpu", 1), [0, 1.0], r"measurements\.cpu\[1\]\[0\]: must be greater than 0, got 0"),
        (("measurements", "cpu", 1), [True, 1.0], r"measurements\.cpu\[1\]\[0\]: must be a valid integer, got True"),
        (("measurements", "cpu", 1, 1), -0.1, r"measurements\.cpu\[1\]\[1\]: must be greater than 0, got -0\.1"),
        (("measurements", "gpu", 0, 1), float("nan"), r"measurements\.gpu\[0\]\[1\]: must be a finite number, got nan"),
        (("measurements", "hop", 0, 1), float("inf"), r"measurements\.hop\[0\]\[1\]: must be a finite number, got inf"),
        (("measurements", "transfer", 1), "0.1", r"measurements\.transfer\[1\]: must be a valid number, got '0\.1'"),
    ],
)
def test_a_wrong_field_is_named(path: Path, keys: tuple[Any, ...], value: Any, message: str) -> None:
    _edit(path, *keys, value=value)
    with pytest.raises(CostsFileError, match=rf"costs\.json: {message}"):
        costs_file.load(path, MODEL)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_what_is_not_json_is_told(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CostsFileError, match=r"costs\.json is not JSON: "):
        costs_file.load(path, MODEL)


def test_what_is_json_and_no_costs_is_told(path: Path) -> None:
    path.write_text("[1, 2]")
    with pytest.raises(CostsFileError, match=r"costs\.json: must be an object, got \[1, 2\]$"):
        costs_file.load(path, MODEL)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CostsFileError, match="cannot be read: No such file"):
        costs_file.load(tmp_path / "costs.json", MODEL)
