"""Reads and writes JSON files whole: a reader sees the old file or the new one, and an error names the wrong field."""

import json
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fiddler.errors import UserError

_WHAT_IS_WRONG = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of this file",
    "unexpected_keyword_argument": "is not a field of this file",
}
"""By pydantic's type of error, where its message would show what the file does not hold."""
_COUNT = re.compile(r"^\w+ should have (.*) after validation, not \d+$")


class JsonFile(BaseModel):
    """What a JSON file holds. A subclass declares the fields; nothing is converted, and no other field is accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


_Content = TypeVar("_Content", bound=JsonFile)


def known_format(number: int) -> AfterValidator:
    """For a field of the format's number: accepts only this one."""

    def check(found: int) -> int:
        if found != number:
            raise ValueError(f"must be {number}")
        return found

    return AfterValidator(check)


def read_json(path: Path, content: type[_Content], error_type: type[UserError]) -> _Content:
    """Reads a file.

    Args:
        path: The file.
        content: What it must hold.
        error_type: What is raised if it does not: one sentence that names the file and the first field that is wrong.

    Raises:
        UserError: Of that type: the file cannot be read, is not JSON, or holds something else.
    """
    try:
        return content.model_validate_json(path.read_bytes())
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise error_type(f"{path} is not JSON: {first['ctx']['error']}") from None
        raise error_type(f"{path}: {_sentence(first)}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file completely or not at all: next to its place, then renamed, which is atomic within a folder.

    Raises:
        OSError: The file cannot be written.
        ValueError: A number is infinite or NaN, which JSON does not have.
    """
    text = json.dumps(content, allow_nan=False) + "\n"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise the rename can reach the disk before the text does
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sentence(error: ErrorDetails) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    problem = _WHAT_IS_WRONG.get(error["type"])
    if problem is None:
        must = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        must = _COUNT.sub(r"must have \1", must)
        problem = f"{must}, got {reprlib.repr(error['input'])}"
    return f"{field}: {problem}" if field else problem
