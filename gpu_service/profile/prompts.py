"""Reads the file of prompts. Imports no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_service.errors import PromptsError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text, and its place in the file."""

    source: str
    """FILE:LINE."""
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Reads all prompts of a file. Empty lines are skipped.

    Args:
        path: A prompt per line; if the name ends in .jsonl, a JSON object with a "text" per line.

    Raises:
        PromptsError: The file holds no prompt, or a line that is none.
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
