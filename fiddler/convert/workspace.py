"""The directory in which a result is made: one process at a time, continued if it was interrupted, renamed when whole.

The result is made in .NAME.partial next to NAME, so that nothing under NAME is ever incomplete. A lock on a file in it
keeps others out, and a record says what the files in it are of, and which of them are whole.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import CheckpointError
from fiddler.checkpoint.json_file import read_json
from fiddler.convert.errors import ConversionError, UnwritableError
from fiddler.convert.source import RECORD_FILE

_LOCK_FILE: Final = ".lock"
_POLL_SECONDS: Final = 0.1


class Workspace:
    """The directory while this process has its lock."""

    def __init__(self, path: Path, target: Path, about: dict[str, Any]) -> None:
        """Keeps what an earlier process finished if it was about the same, and removes everything else.

        Args:
            path: The directory.
            target: What it becomes.
            about: What tells this conversion and the layout of its files from others.
        """
        self.path = path
        self._target = target
        self._about = about
        self._finished: dict[str, int] = {}
        record = self._read_record()
        if record is not None and about.items() <= record.items() and isinstance(record.get("finished"), dict):
            self._finished = dict(record["finished"])
        for entry in path.iterdir():
            if entry.name not in (*self._finished, _LOCK_FILE):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._write_record()

    def has(self, name: str, num_bytes: int) -> bool:
        """Whether a file was finished, and still has its size."""
        with contextlib.suppress(OSError):
            return self._finished.get(name) == num_bytes == (self.path / name).stat().st_size
        return False

    def finish(self, name: str, num_bytes: int) -> None:
        """Notes that a file is whole."""
        self._finished[name] = num_bytes
        self._write_record()

    def publish(self) -> None:
        """Gives the directory its name. All files in it are on the disk before.

        Raises:
            ConversionError: There is something else by now.
        """
        for path in (path for path in self.path.rglob("*") if path.is_file()):
            _sync(path)
        _sync(self.path)
        try:
            self.path.rename(self._target)  # an empty directory is replaced
        except OSError as error:
            raise ConversionError(f"{self._target} cannot be made: {error.strerror}.") from error
        _sync(self._target.parent)
        # last, since whoever waits for the lock looks for the target when it gets it
        (self._target / _LOCK_FILE).unlink(missing_ok=True)

    def _read_record(self) -> dict[str, Any] | None:
        try:
            return read_json(self.path / RECORD_FILE, CheckpointError)
        except CheckpointError:
            return None

    def _write_record(self) -> None:
        write_json(self.path / RECORD_FILE, {**self._about, "finished": self._finished})


@contextmanager
def workspace(
    target: Path,
    about: dict[str, Any],
    *,
    is_done: Callable[[], bool],
    on_wait: Callable[[], None],
    check_stop: Callable[[], None],
) -> Iterator[Workspace | None]:
    """The directory for a target, locked; None if another process has made the target meanwhile.

    Args:
        target: What is made.
        about: See `Workspace`.
        is_done: Whether the target is there.
        on_wait: Is called once if another process has the lock.
        check_stop: Is called while waiting; what it raises ends the wait.

    Raises:
        UnwritableError: The directory cannot be written to.
    """
    path = target.with_name(f".{target.name}.partial")
    with refusals_reported(path):
        lock = _locked(path, is_done, on_wait, check_stop)
    if lock is None:
        yield None
        return
    try:
        with refusals_reported(path):
            space = Workspace(path, target, about)
        yield space
    finally:
        os.close(lock)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, or leaves what was there."""
    other = path.with_name(f"{path.name}.unfinished")
    with other.open("w") as file:
        json.dump(content, file, indent=2, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    other.rename(path)


def _locked(
    path: Path, is_done: Callable[[], bool], on_wait: Callable[[], None], check_stop: Callable[[], None]
) -> int | None:
    """The open lock file of the directory, which is made if it is missing; None if the target is there."""
    has_waited = False
    while not is_done():
        check_stop()
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # it was renamed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if not has_waited:
                has_waited = True
                on_wait()
            time.sleep(_POLL_SECONDS)
            continue
        if _is_still(lock, path / _LOCK_FILE) and not is_done():
            return lock
        os.close(lock)
        _remove_if_unused(path, is_done)
    return None


def _is_still(file: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    with contextlib.suppress(OSError):
        opened, found = os.fstat(file), path.stat()
        return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)
    return False


def _remove_if_unused(path: Path, is_done: Callable[[], bool]) -> None:
    """Removes a directory that was made while the target was being published."""
    if is_done():
        with contextlib.suppress(OSError):
            if [entry.name for entry in path.iterdir()] == [_LOCK_FILE]:
                (path / _LOCK_FILE).unlink()
                path.rmdir()


@contextmanager
def refusals_reported(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write in a directory into an UnwritableError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnwritableError(f"{error.filename or path} cannot be written to: {error.strerror}.") from error


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
