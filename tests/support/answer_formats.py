"""Response templates of five families' form, with an answer in each and what it says."""

from dataclasses import dataclass
from typing import Any

_CALL = {"type": "function", "function": "{content}"}
_EACH = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Format:
    """One family's form of answers."""

    name: str
    template: dict[str, Any]
    prompt: str
    answer: str
    content: str
    reasoning: str
    calls: tuple[tuple[str, dict[str, Any]], ...]


_TWO = (("weather", {"city": "Ulm", "days": 2}), ("weather", {"city": "Bonn é", "days": 1}))
FORMATS = (
    Format(
        "json in tags",
        {
            "start_anchor": "<|im_start|>assistant\n",
            "fields": {
                "reasoning_content": {"open": "<think>", "close": "</think>"},
                "tool_calls": {
                    "open_pattern": r"\s*<tool_call>",
                    "close": "</tool_call>",
                    "repeats": True,
                    "content": "json",
                    "transform": _CALL,
                },
                "content": {"close": "<|im_end|>"},
            },
        },
        "<|im_start|>user\nHow is it?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\nTwo cities < 3.\n</think>\n\nI look.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn é", "days": 1}}\n</tool_call>',
        "I look.",
        "Two cities < 3.",
        _TWO,
    ),
    Format(
        "xml parameters",
        {
            "start_anchor": "<|im_start|>assistant\n",
            "fields": {
                "tool_calls": {
                    "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
                    "close_pattern": r"</function>\s*</tool_call>",
                    "repeats": True,
                    "content": "xml-inline",
                    "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
                    "transform": _NAMED,
                },
                "content": {},
            },
        },
        "<|im_start|>assistant\n",
        "Both.\n<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nBonn é\n</parameter>\n"
        "<parameter=days>\n1\n</parameter>\n</function>\n</tool_call>",
        "Both.",
        "",
        _TWO,
    ),
    Format(
        "a list after a mark",
        {
            "start_anchor": "[/INST]",
            "fields": {
                "tool_calls": {
                    "open": "[TOOL_CALLS]",
                    "content": "json",
                    "transform": _EACH,
                    "transform_each": True,
                },
                "content": {},
            },
        },
        "<s>[INST] How is it? [/INST]",
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}, '
        '{"name": "weather", "arguments": {"city": "Bonn é", "days": 1}}]',
        "",
        "",
        _TWO,
    ),
    Format(
        "reasoning that the prompt opens",
        {
            "start_anchor": "<|Assistant|>",
            "fields": {"reasoning_content": {"open": "<think>", "close": "</think>"}, "content": {}},
        },
        "<|User|>How is it?<|Assistant|><think>\n",
        "It may </thin rain.\n</think>\n\nIt rains.\n",
        "It rains.",
        "It may </thin rain.",
        (),
    ),
    Format(
        "channels",
        {
            "start_anchor": "<|start|>assistant",
            "fields": {
                "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
                "tool_calls": {
                    "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+)[^<]*(?:<\|constrain\|>json)?"
                    r"<\|message\|>",
                    "close": "<|call|>",
                    "repeats": True,
                    "content": "json",
                    "transform": _NAMED,
                },
                "content": {"open": "<|channel|>final<|message|>", "close": "<|return|>"},
                "skipped": {},
            },
        },
        "<|start|>user<|message|>How is it?<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>Look first.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Ulm", "days": 2}<|call|>'
        "<|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
        "It rains.",
        "Look first.",
        (("weather", {"city": "Ulm", "days": 2}),),
    ),
)
