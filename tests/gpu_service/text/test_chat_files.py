"""Where a checkpoint's chat templates are found."""

import json
from pathlib import Path
from typing import Any

import pytest

from fiddler.errors import UserError
from gpu_service.text.chat_files import find_templates


def _write(directory: Path, file: str, content: Any) -> None:
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if file.endswith(".jinja") else json.dumps(content))


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("chat_template.jinja", "J", {"default": "J"}),
        ("additional_chat_templates/rag.jinja", "R", {"rag": "R"}),
        ("tokenizer_config.json", {"chat_template": "T"}, {"default": "T"}),
        ("tokenizer_config.json", {"chat_template": None}, {}),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]},
            {"default": "D", "rag": "R"},
        ),
        ("tokenizer_config.json", {"chat_template": {"tool_use": "U"}}, {"tool_use": "U"}),
        ("chat_template.json", {"chat_template": "C"}, {"default": "C"}),
        ("chat_template.json", {"chat_template": {"default": "C"}}, {"default": "C"}),
        ("processor_config.json", {"chat_template": "P", "processor_class": "X"}, {"default": "P"}),
    ],
)
def test_every_place_is_looked_at(tmp_path: Path, file: str, content: Any, found: dict[str, str]) -> None:
    _write(tmp_path, file, content)
    assert find_templates(tmp_path) == found


def test_the_first_place_counts_and_default_comes_first(tmp_path: Path) -> None:
    _write(tmp_path, "additional_chat_templates/a.jinja", "A")
    _write(tmp_path, "tokenizer_config.json", {"chat_template": {"default": "D", "a": "late", "b": "B"}})
    _write(tmp_path, "chat_template.json", {"chat_template": "late"})
    assert list(find_templates(tmp_path).items()) == [("default", "D"), ("a", "A"), ("b", "B")]
    _write(tmp_path, "chat_template.jinja", "J")
    assert find_templates(tmp_path)["default"] == "J"


@pytest.mark.parametrize("value", [5, [{"name": "default"}], ["x"], {"default": None}, [{"name": 1, "template": "x"}]])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json", "processor_config.json"])
def test_a_value_that_is_no_template_is_named(tmp_path: Path, file: str, value: Any) -> None:
    _write(tmp_path, file, {"chat_template": value})
    with pytest.raises(UserError, match=f"{file}: chat_template must be a template"):
        find_templates(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(UserError, match=r"chat_template\.json is not JSON"):
        find_templates(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: is not UTF-8"):
        find_templates(tmp_path)
