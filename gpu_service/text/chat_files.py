"""Finds a checkpoint's chat templates, wherever it keeps them.

transformers reads some of these places for a tokenizer and others for a processor, so that a multimodal checkpoint's
template may be where a tokenizer does not look. Here every place counts. Of two templates of one name, that of the
first place is taken.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiddler.checkpoint.errors import FileFormatError
from fiddler.checkpoint.json_file import read_json
from gpu_service.errors import ModelError

DEFAULT = "default"
"""The name of a template that has none."""
_FIELD = "chat_template"
_JSON_FILES = ("tokenizer_config.json", "chat_template.json", "processor_config.json")


def find_templates(directory: Path) -> dict[str, str]:
    """The chat templates of a checkpoint, as Jinja sources by name; "default" comes first if there is one.

    Raises:
        UserError: A file that may hold templates cannot be read; the text names the file and the field.
    """
    found: dict[str, str] = {}
    for name, source in _all_templates(directory):
        found.setdefault(name, source)
    return {name: found[name] for name in sorted(found, key=lambda name: name != DEFAULT)}


def _all_templates(directory: Path) -> Iterator[tuple[str, str]]:
    if (path := directory / "chat_template.jinja").is_file():
        yield DEFAULT, _read(path)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        yield path.stem, _read(path)
    for file in _JSON_FILES:
        if (path := directory / file).is_file():
            yield from _named(_json_value(path), path)


def _json_value(path: Path) -> Any:
    return read_json(path, FileFormatError).get(_FIELD)


def _named(value: Any, path: Path) -> Iterator[tuple[str, str]]:
    """The templates in a JSON value: one source, an object of sources, or a list of objects with name and source."""
    if value is None:
        return
    if isinstance(value, str):
        yield DEFAULT, value
        return
    if isinstance(value, dict):
        named = list(value.items())
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        named = [(each.get("name"), each.get("template")) for each in value]
    else:
        named = [(None, None)]
    for name, source in named:
        if not isinstance(name, str) or not isinstance(source, str):
            raise ModelError(f"{path}: {_FIELD} must be a template, or a list of objects with a name and a template")
        yield name, source


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from None
