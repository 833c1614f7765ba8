"""Files in memory that two processes of one host map: where they lie, and how both sides open them safely."""

import mmap
import os
import secrets
import stat
from pathlib import Path

METADATA = "fiddler-segment"
"""The metadata of Run that names the segment to use, by its id in hexadecimal."""
_MOUNTS = Path("/proc/self/mountinfo")
_COMMON = Path("/dev/shm")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_PREFIX = ".fiddler-segment-"


def directory_for(address: str) -> Path | None:
    """Where a file lies that the callers of an address can map; None if there is no such place.

    The socket's own directory if it is in memory, because a caller in another container sees it, too; else /dev/shm,
    which is one place for all processes outside containers. On a disk the system would write the messages out.
    """
    if not address.startswith("unix:"):
        return None
    for directory in (Path(address.removeprefix("unix:")).parent, _COMMON):
        if directory.is_dir() and os.access(directory, os.W_OK | os.X_OK) and _file_system(directory) in _IN_MEMORY:
            return directory
    return None


def create(directory: Path, num_bytes: int) -> tuple[Path, mmap.mmap]:
    """Makes a file of this user's alone, whose memory is taken now, so that no later write finds none.

    Raises:
        OSError: There is not so much memory there, or no permission.
    """
    path = directory / f"{_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
        return path, mmap.mmap(descriptor, num_bytes)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def attach(path: Path, num_bytes: int) -> mmap.mmap:
    """Maps a file that another process made.

    Raises:
        OSError: It is not there, or not a file of this user's or of root's, of that size, that nobody else may write.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != num_bytes:
            raise OSError(f"{path} is not a file of {num_bytes} bytes")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(f"{path} belongs to user {status.st_uid}, or others may write it")
        return mmap.mmap(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def _file_system(directory: Path) -> str:
    """The type of the file system that a directory is on; empty if the system does not say."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    resolved, found, longest = directory.resolve(), "", -1
    for line in lines:
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if len(fields) < 5 or not kinds:
            continue
        mount = Path(fields[4].encode().decode("unicode_escape"))  # spaces are \040 there
        if resolved.is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = kinds[0], len(mount.parts)
    return found
