import os
from pathlib import Path

import pytest

from fiddler.transport import shared_memory

MOUNTS = """\
22 1 0:20 / / rw - ext4 /dev/root rw
23 22 0:21 / /run rw shared:1 - tmpfs tmpfs rw
24 23 0:22 / /run/on\\040disk rw - ext4 /dev/sdb rw
25 22 0:23 / {common} rw - {kind} shm rw
"""


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev/shm, which is in memory."""
    directory = tmp_path / "shm"
    directory.mkdir()
    monkeypatch.setattr(shared_memory, "_COMMON", directory)
    _mount(monkeypatch, tmp_path, directory, "tmpfs")
    return directory


def _mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, common: Path, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(common=common, kind=kind))
    monkeypatch.setattr(shared_memory, "_MOUNTS", mounts)


def test_a_socket_s_directory_in_memory_comes_first(common: Path) -> None:
    below = common / "fiddler"
    below.mkdir()
    assert shared_memory.directory_for(f"unix:{below}/experts.sock") == below


def test_for_a_socket_on_a_disk_it_is_the_common_place(common: Path, tmp_path: Path) -> None:
    assert shared_memory.directory_for(f"unix:{tmp_path}/experts.sock") == common


def test_there_is_no_place_for_a_port_or_without_memory(
    common: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared_memory.directory_for("127.0.0.1:50052") is None
    _mount(monkeypatch, tmp_path, common, "ext4")
    assert shared_memory.directory_for(f"unix:{tmp_path}/experts.sock") is None


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "ext4"), ("/run", "tmpfs"), ("/run/x/y", "tmpfs"), ("/run/on disk/x", "ext4")]
)
def test_the_longest_mount_that_holds_a_directory_counts(common: Path, path: str, kind: str) -> None:
    assert shared_memory._file_system(Path(path)) == kind


def test_both_sides_see_one_memory(tmp_path: Path) -> None:
    path, memory = shared_memory.create(tmp_path, 8192)
    other = shared_memory.attach(path, 8192)
    path.unlink()
    memory[5000] = 7
    assert other[5000] == 7
    other[0] = 9
    assert memory[0] == 9


def test_a_file_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path, _ = shared_memory.create(tmp_path, 4096)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_there_is_no_room_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        shared_memory.create(tmp_path, 4096)
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_another_s_is_not_mapped(tmp_path: Path) -> None:
    path, _ = shared_memory.create(tmp_path, 4096)
    with pytest.raises(OSError, match="not a file of 8192 bytes"):
        shared_memory.attach(path, 8192)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        shared_memory.attach(link, 4096)
    path.chmod(0o666)
    with pytest.raises(OSError, match="others may write"):
        shared_memory.attach(path, 4096)
    with pytest.raises(FileNotFoundError):
        shared_memory.attach(tmp_path / "missing", 4096)
