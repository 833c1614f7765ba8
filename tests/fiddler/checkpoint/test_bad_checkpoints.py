"""Every way a checkpoint directory can be wrong ends in one sentence that names the file and the tensor."""

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiddler.checkpoint import Checkpoint, CheckpointError, errors
from fiddler.checkpoint.safetensors_index import read_file
from tests.support import checkpoints
from tests.support.damaged_checkpoints import CASES
from tests.support.tampering import SINGLE_FILE, write_raw


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(
        "mixtral",
        tmp_path_factory.mktemp("sound"),
        num_hidden_layers=2,
        num_local_experts=4,
        hidden_size=32,
        intermediate_size=24,
    )


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "copy"))


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(case: str, directory: Path) -> None:
    damage, error_class, fragments = CASES[case]
    damage(directory)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    message = str(caught.value)
    assert type(caught.value) is error_class
    assert str(directory) in message
    assert re.fullmatch(r"\S[^\n]*\.", message)
    for fragment in fragments:
        assert fragment in message


def test_the_undamaged_checkpoint_is_accepted(directory: Path) -> None:
    assert len(Checkpoint.open(directory).layers) == 2


KEYS = ("dtype", "shape", "data_offsets")
NUMBERS = st.integers(-1, 8) | st.integers() | st.floats() | st.booleans()
JSON = (
    NUMBERS
    | st.none()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", "F4"])
    | st.lists(NUMBERS, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.sampled_from(KEYS), NUMBERS, max_size=3)
)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(entries=st.dictionaries(st.text(max_size=8), st.fixed_dictionaries(dict.fromkeys(KEYS, JSON)), max_size=3))
def test_no_header_raises_anything_else(tmp_path: Path, entries: dict[str, Any]) -> None:
    write_raw(tmp_path / "file", json.dumps(entries).encode(), bytes(4))
    with contextlib.suppress(CheckpointError):
        read_file(tmp_path / "file")


@FUZZ
@given(data=st.data())
def test_no_damage_to_a_file_raises_anything_else(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((sound / SINGLE_FILE).read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header_end - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    shutil.copy(sound / "config.json", tmp_path)
    (tmp_path / SINGLE_FILE).write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with contextlib.suppress(CheckpointError):
        Checkpoint.open(tmp_path)


@FUZZ
@given(config=st.dictionaries(st.sampled_from(["hidden_size", "num_experts", "text_config", "hidden_act"]), JSON))
def test_no_config_raises_anything_else(sound: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    if not (tmp_path / SINGLE_FILE).exists():
        shutil.copy(sound / SINGLE_FILE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "hidden_size": 32} | config))
    with contextlib.suppress(CheckpointError):
        Checkpoint.open(tmp_path)


def test_a_directory_that_the_system_refuses_is_reported(tmp_path: Path) -> None:
    with pytest.raises(errors.DirectoryError, match=r"xxx cannot be read: File name too long\."):
        Checkpoint.open(tmp_path / ("x" * 300))


def test_a_file_that_cannot_be_mapped_is_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(errors.DirectoryError, match=r"copy cannot be read: Cannot allocate memory\."):
        Checkpoint.open(directory)


@pytest.mark.parametrize("name", ["config.json", SINGLE_FILE])
def test_a_file_that_is_deleted_before_the_fingerprint_is_reported(name: str, directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    (directory / name).unlink()
    with pytest.raises(errors.DirectoryError, match=rf"copy/{name} cannot be read: No such file"):
        _ = checkpoint.fingerprint
