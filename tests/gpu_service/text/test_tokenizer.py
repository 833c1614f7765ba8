import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.errors import ModelError
from gpu_service.text.tokenizer import ChatTemplateError, Tokenizer
from tests.support.pairs import DEMO

_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('nobody may not speak') }}"
    "{% endif %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _with_template(directory: Path, template: str) -> Tokenizer:
    shutil.copytree(DEMO, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    (directory / "chat_template.jinja").write_text(template)
    return Tokenizer(directory)


@given(text=st.text(alphabet="abté 🙂", max_size=30))
def test_the_bytes_of_a_texts_tokens_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Except for the space that sentencepiece puts before a text."""
    spelt = [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(text, add_special_tokens=False)]
    assert b"".join(each or b"" for each in spelt).decode() in (text, f" {text}")


def test_a_token_keeps_its_leading_space_and_a_part_of_a_character_is_replaced(tokenizer: Tokenizer) -> None:
    the = tokenizer.encode("a the", add_special_tokens=False)
    assert "".join(tokenizer.token_text(token_id) for token_id in the).strip() == "a the"
    assert tokenizer.token_text(tokenizer.encode("🙂")[-1]) == "\ufffd"


def test_a_token_that_the_tokenizer_does_not_know_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(100_000) is None
    assert tokenizer.token_text(100_000) == ""


def test_special_tokens_are_left_out_on_demand(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a")
    plain = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.decode([1, *plain], skip_special_tokens=True) == tokenizer.decode(plain)
    assert "<s>" in tokenizer.decode([1, *plain], skip_special_tokens=False)
    assert ids[-len(plain) :] == plain


def test_messages_are_rendered_and_the_answer_is_next(tmp_path: Path) -> None:
    tokenizer = _with_template(tmp_path, _TEMPLATE)
    assert tokenizer.has_chat_template
    assert tokenizer.render([("system", "be kind"), ("user", "hello")]) == ("<system>be kind\n<user>hello\n<assistant>")


def test_what_a_template_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="nobody may not speak"):
        _with_template(tmp_path, _TEMPLATE).render([("nobody", "hello")])


@pytest.mark.parametrize("template", ["{{ messages[99].content }}", "{{ 1 / 0 }}", "{% if %}"])
def test_a_template_that_breaks_is_none_and_told_as_well(tmp_path: Path, template: str) -> None:
    tokenizer = _with_template(tmp_path, template)
    assert not tokenizer.has_chat_template
    with pytest.raises(ChatTemplateError, match="does not work"):
        tokenizer.render([("user", "hello")])


def test_a_template_is_chosen_by_its_name_and_knows_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "short.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    tokenizer = _with_template(tmp_path, _TEMPLATE)
    assert tokenizer.chat_templates.names == ("default", "short")
    assert tokenizer.render([{"role": "user", "content": "hello"}], template="short") == "<s>hello"


def test_a_model_may_have_no_template(tokenizer: Tokenizer, tokenizer_directory: Path) -> None:
    assert tokenizer.has_chat_template == (tokenizer_directory == DEMO)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        Tokenizer(tmp_path)
