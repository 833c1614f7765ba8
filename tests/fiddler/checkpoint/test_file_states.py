"""A file of weights that changes while it is open is noticed; one that only loses its name is not a reason to end."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fiddler.checkpoint import ChangedFileError
from fiddler.checkpoint.file_states import FileStates


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_what_is_untouched_is_unchanged_however_often_it_is_read(file: Path) -> None:
    states = FileStates([file])
    assert file.read_bytes()
    file.chmod(0o400)
    states.check()


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda path: path.open("r+b").write(b"W"), "its time of modification is another"),
        (lambda path: os.truncate(path, 100), "it has 100 bytes and had 7000"),
        (lambda path: path.open("ab").write(b"more"), "it has 7004 bytes and had 7000"),
        (lambda path: os.utime(path), "its time of modification is another"),
    ],
    ids=["overwritten", "cut off", "longer", "touched"],
)
def test_a_file_that_is_changed_in_place_is_named(file: Path, change: object, how: str) -> None:
    states = FileStates([file])
    change(file)  # type: ignore[operator]
    with pytest.raises(ChangedFileError) as raised:
        states.check()
    assert str(file) in str(raised.value)
    assert how in str(raised.value)


def test_a_file_that_is_replaced_by_renaming_is_a_warning_once(file: Path) -> None:
    states = FileStates([file])
    new = file.with_suffix(".new")
    new.write_bytes(b"other")
    new.rename(file)
    with capture_logs() as logged:
        states.check()
        states.check()
    assert [(each["log_level"], each["file"]) for each in logged] == [("warning", str(file))]


def test_a_file_that_is_removed_is_a_warning_and_its_old_pages_are_still_watched(file: Path) -> None:
    other_name = file.with_suffix(".linked")
    os.link(file, other_name)
    states = FileStates([file])
    file.unlink()
    with capture_logs() as logged:
        states.check()
    assert [each["log_level"] for each in logged] == ["warning"]
    other_name.write_bytes(b"other")
    with pytest.raises(ChangedFileError):
        states.check()


def test_closed_files_are_not_looked_at(file: Path) -> None:
    states = FileStates([file])
    states.close()
    file.write_bytes(b"other")
    states.check()
