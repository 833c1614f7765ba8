"""Reads the file of prompts. torch is not imported here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_service.errors import PromptsError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text, and where it was found."""

    source: str
    """FILE:LINE."""
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Every prompt of a file; empty lines are skipped.

    Args:
        path: A prompt per line; where the name ends in .jsonl, a JSON object per line with a "text".

    Raises:
        PromptsError: There is no prompt, or a line is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PromptsError(f"--prompts: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptsError(f"--prompts: {path} is not UTF-8: {error.reason} at byte {error.start}") from None
    prompts = [Prompt(source, _text(source, line, path)) for source, line in _numbered(path, lines)]
    if not prompts:
        raise PromptsError(f"--prompts: {path} holds no prompt")
    return prompts


def _numbered(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    return ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _text(source: str, line: str, path: Path) -> str:
    if path.suffix != ".jsonl":
        return line
    try:
        content = json.loads(line)
    except ValueError as error:
        raise PromptsError(f"--prompts: {source}: not JSON: {error}") from None
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise PromptsError(f'--prompts: {source}: must be an object with a "text" that is not empty')
    return text
