"""Reads the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, error_class: type[Exception]) -> dict[str, Any]:
    """The JSON object in a file; raises `error_class`, naming the file, when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise error_class(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise error_class(f"{path} is not JSON: {_reason(error)}.") from error
    if not isinstance(content, dict):
        raise error_class(f"{path} is not a JSON object.")
    return content


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
