"""Chat templates of the form in which families write calls of functions, and tokenizers that bring them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from tests.support.pairs import DEMO


@dataclass(frozen=True, slots=True)
class CallTemplate:
    """One family's form. `call` is an answer with one call, of the function f with {"a": 1}, without its end."""

    name: str
    source: str
    call: str
    special: tuple[str, ...] = ()
    end: str = "</s>"
    many: bool = True


_HERMES = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content and loop.last %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}
{%- if not loop.first or m.content %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if opens_reasoning %}<think>
{% elif enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

_MISTRAL = """
{%- for m in messages %}
{%- if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'system' %}{{ m.content }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('an id has 9 characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- ', "id": "' + call.id + '"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]</s>
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"""

_MISTRAL_APART = """
{%- for m in messages %}
{%- if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else %}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}{% endfor %}</s>
{%- endif %}{% endfor %}"""

_LLAMA = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}{{ m.content }}{% endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_DEEPSEEK = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{%- if loop.first %}<｜tool▁calls▁begin｜>{% else %}{{ '\\n' }}{% endif %}
{{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' }}
{{- call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
{%- if loop.last %}<｜tool▁calls▁end｜>{% endif %}{% endfor %}<｜end▁of▁sentence｜>
{%- else %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{% endif %}"""

_DEEPSEEK_PLAIN = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<｜Assistant｜></think>' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{%- if loop.first %}<｜tool▁calls▁begin｜>{% endif %}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments | tojson }}
{{- '<｜tool▁call▁end｜>' }}
{%- if loop.last %}<｜tool▁calls▁end｜>{% endif %}{% endfor %}<｜end▁of▁sentence｜>
{%- else %}{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<｜Assistant｜></think>{% endif %}"""

_HARMONY = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson + '<|call|>' }}
{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

XML = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + value | string + '\\n</parameter>\\n' }}{% endfor %}
{{- '</function>\\n</tool_call>' }}{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Of a family whose calls have no JSON in them."""

TEMPLATES = (
    CallTemplate(
        "hermes", _HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', end="<|im_end|>"
    ),
    CallTemplate(
        "hermes with special tokens",
        _HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"),
        end="<|im_end|>",
    ),
    CallTemplate(
        "mistral",
        _MISTRAL,
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "prb123456"}]',
        ("[TOOL_CALLS]", "[INST]", "[/INST]"),
    ),
    CallTemplate("mistral apart", _MISTRAL_APART, '[TOOL_CALLS]f[ARGS]{"a": 1}', ("[TOOL_CALLS]", "[ARGS]", "[/INST]")),
    CallTemplate(
        "llama", _LLAMA, '{"name": "f", "parameters": {"a": 1}}', ("<|eot_id|>",), end="<|eot_id|>", many=False
    ),
    CallTemplate(
        "deepseek",
        _DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜end▁of▁sentence｜>",
        ),
        end="<｜end▁of▁sentence｜>",
    ),
    CallTemplate(
        "deepseek plain",
        _DEEPSEEK_PLAIN,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
        end="<｜end▁of▁sentence｜>",
    ),
    CallTemplate(
        "harmony",
        _HARMONY,
        ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}',
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
        end="<|call|>",
        many=False,
    ),
)


def write_tokenizer(
    directory: Path, source: str, special: tuple[str, ...] = (), response_template: dict[str, Any] | None = None
) -> Path:
    """Writes the demo model's tokenizer with another chat template, and with more special tokens."""
    directory.mkdir(exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(DEMO / name, directory)
    raw = RawTokenizer.from_file(str(DEMO / "tokenizer.json"))
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    raw.save(str(directory / "tokenizer.json"))
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    if response_template is not None:
        config["response_template"] = response_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(source)
    return directory
