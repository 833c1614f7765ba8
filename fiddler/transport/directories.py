"""Whether another user could put a socket of their own where a service's is, and so be taken for the service."""

import os
import stat
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def problem_of(path: Path) -> str:
    """Why another user could replace a socket, in a sentence that says what helps; empty if none could.

    Root and this process's user are trusted. What is not there yet has no problem.

    Args:
        path: The socket's path.

    Raises:
        OSError: The directory may not be looked at.
    """
    directory = path.parent
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return ""
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return f"the socket's directory {directory} is a symbolic link; name the directory that it leads to"
    if not _is_trusted(status):
        return (
            f"the socket's directory {directory} belongs to user {status.st_uid}, who could replace the socket; "
            f"choose one that belongs to user {os.geteuid()}, with mode 0700"
        )
    if not mode & _WRITABLE_BY_OTHERS:
        return ""
    if not mode & stat.S_ISVTX:
        return (
            f"the socket's directory {directory} has mode {mode:04o}, so that others could replace the socket; "
            f"`chmod go-w {directory}`, or choose another one"
        )
    return _problem_of_socket(path)


def _problem_of_socket(path: Path) -> str:
    """In a directory such as /tmp anybody may make a socket, but only its owner may replace it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    if _is_trusted(status):
        return ""
    return (
        f"the socket {path} belongs to user {status.st_uid}, in a directory where anybody may make one; "
        f"choose a directory that belongs to user {os.geteuid()}, with mode 0700"
    )


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())
