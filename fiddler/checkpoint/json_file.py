"""Reads the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from fiddler.checkpoint.errors import CheckpointError


def read_json(path: Path, error_class: type[CheckpointError]) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        error_class: What to raise if the file cannot be read or holds no JSON object; the message names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise error_class(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise error_class(f"{path} is not JSON: {problem_of(error)}.") from error
    if not isinstance(content, dict):
        raise error_class(f"{path} is not a JSON object.")
    return content


def problem_of(error: Exception) -> str:
    """What a JSON parser's error says, without a full stop; its class if it says nothing, as RecursionError may."""
    return str(error).rstrip(".") or type(error).__name__
