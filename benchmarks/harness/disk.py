"""Room for the checkpoints that a benchmark writes: missed in a sentence, before anything is written or measured."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import typer

from fiddler.convert.conversion import free_bytes
from fiddler.sizes import format_bytes

_RESERVE_BYTES = 16 * 2**20  # tokenizers, configurations and logs


def check_missing(
    folder: Path | None, checkpoints: Mapping[str, int], *, remedy: str, last: str = "tokenizer.json"
) -> None:
    """Checks that there is room for the checkpoints of a folder that are missing.

    Args:
        folder: Where they are kept; None: they are written into a temporary directory.
        checkpoints: The name of each in the folder, with the bytes of its weights. Of one that is not whole, the files
            that are there are written again.
        remedy: See check_room.
        last: The file that is written last: a checkpoint that has it is whole and takes nothing more.

    Raises:
        typer.BadParameter: There is no room.
    """
    if folder is None:
        check_room(None, checkpoints, remedy=remedy)
        return
    missing = {name: size for name, size in checkpoints.items() if size and not (folder / name / last).exists()}
    if missing:
        again = sum(file.stat().st_size for name in missing for file in (folder / name).glob("*.safetensors"))
        check_room(folder, missing, remedy=remedy, replaced_bytes=again)


def check_room(folder: Path | None, sizes: Mapping[str, int], *, remedy: str, replaced_bytes: int = 0) -> None:
    """Checks that there is room for what is written into a folder.

    Args:
        folder: The folder, which need not be there; None: that of temporary directories.
        sizes: What is written there, by name, in bytes.
        remedy: What to do if there is no room, such as "name another directory with --checkpoint".
        replaced_bytes: Of files that are written over.

    Raises:
        typer.BadParameter: There is no room.
    """
    folder = folder or Path(tempfile.gettempdir())
    needed, free = sum(sizes.values()) + _RESERVE_BYTES, free_bytes(folder) + replaced_bytes
    if needed > free:
        raise typer.BadParameter(
            f"{folder}: what is written there ({', '.join(sizes)}) takes {format_bytes(needed)}, and"
            f" {format_bytes(free)} are free: make room, or {remedy}"
        )
