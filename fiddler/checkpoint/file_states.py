"""Notices that a file of weights is changed while its pages are served.

The pages are the file's own: whoever writes into it changes the weights of a model that is being computed, and whoever
cuts it off ends the process. A file that is only removed, or that another one replaces under its name, keeps its pages
for as long as somebody has it open, which these objects do.
"""

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import structlog

from fiddler.checkpoint.errors import ChangedFileError

_log = structlog.get_logger(__name__)


class FileStates:
    """What files looked like when they were opened."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Opens the files and keeps them open."""
        self._files: dict[Path, int] = {}
        self._finalizer = weakref.finalize(self, _close, self._files)
        for path in paths:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened = {path: os.fstat(file) for path, file in self._files.items()}
        self._replaced: set[Path] = set()

    def check(self) -> None:
        """Looks at every file again; logs a warning for one whose name is gone or has become another file's.

        Raises:
            ChangedFileError: A file was written to, or its time of modification was set.
        """
        for path, file in tuple(self._files.items()):
            opened, now = self._opened[path], os.fstat(file)
            if now.st_size != opened.st_size:
                raise _changed(path, f"it has {now.st_size} bytes and had {opened.st_size}")
            if now.st_mtime_ns != opened.st_mtime_ns:
                raise _changed(path, "its time of modification is another")
            if path not in self._replaced and not _is_same(path, opened):
                self._replaced.add(path)
                _log.warning(
                    "file replaced or removed; the old weights are served on, and a restart will serve what is there",
                    file=str(path),
                )

    def close(self) -> None:
        """Closes the files; nothing is checked afterwards."""
        self._finalizer()


def _close(files: dict[Path, int]) -> None:
    for file in files.values():
        os.close(file)
    files.clear()


def _changed(path: Path, how: str) -> ChangedFileError:
    return ChangedFileError(
        f"{path} was changed while its weights were served ({how}); nothing more is computed with it. Put a new "
        "checkpoint into a directory of its own, or rename its files into place, and start the service again."
    )


def _is_same(path: Path, opened: os.stat_result) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)
