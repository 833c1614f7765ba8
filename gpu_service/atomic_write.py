"""Writes a file whole or not at all: who reads it meanwhile sees the old one."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes beside the file and renames, which is atomic within a folder.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise the rename can reach the disk before the text does
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
