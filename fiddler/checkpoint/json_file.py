"""Reads the JSON files of a checkpoint, within bounds on what they may take."""

import json
import os
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import CheckpointError

MAX_BYTES: Final = 16 * 2**20
"""Of a configuration; published ones have some kilobytes."""
_MAX_DIGITS: Final = 64
"""Of a whole number; transformers writes 10^30 for a length without a limit."""


def read_json(path: Path, error_class: type[CheckpointError], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        error_class: What to raise if the file cannot be read or holds no JSON object; the message names the file.
        max_bytes: The most that the file may hold.
    """
    try:
        if path.exists() and not path.is_file():
            raise error_class(f"{path} {absence(path)}.")
        num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise error_class(f"{path} has {num_bytes} bytes; such a file has at most {max_bytes}.")
        content = json.loads(path.read_bytes(), parse_int=_bounded_int)
    except OSError as error:
        raise error_class(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise error_class(f"{path} is not JSON: {problem_of(error)}.") from error
    if not isinstance(content, dict):
        raise error_class(f"{path} is not a JSON object.")
    return content


def absence(path: Path) -> str:
    """Why there is no regular file at a path, after its name in a sentence. Devices and pipes may have no end."""
    if not os.path.lexists(path):
        return "is missing"
    if not path.is_symlink():
        return "is not a regular file"
    return "is a link to something that is not a regular file" if path.exists() else "is a link that leads nowhere"


def problem_of(error: Exception) -> str:
    """What a JSON parser's error says, without a full stop; its class if it says nothing, as RecursionError may."""
    return str(error).rstrip(".") or type(error).__name__


def _bounded_int(digits: str) -> int:
    """A whole number of JSON. Converting one takes time with the square of its digits.

    Raises:
        ValueError: It has more digits than any setting needs.
    """
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
