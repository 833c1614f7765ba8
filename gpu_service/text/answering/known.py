"""Response templates of forms in which families write calls, for checkpoints that bring no response template.

Which one a model has is found on its chat template: the one that finds the probes' call in what the chat template
writes. Sources: the families' published chat templates.
"""

from typing import Any, Final

from gpu_service.text.answering.form import CallForm, NoCallFormError, Probes, form_of

_NAME = r"(?P<name>[\w.:-]+)"
_WHOLE = {"type": "function", "function": "{content}"}
_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_EACH = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
_THINK = {"open": "<think>", "close": "</think>"}
_IM_END = {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"}

KNOWN: Final[dict[str, dict[str, Any]]] = {
    "hermes": {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": _THINK,
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "json",
                "transform": _WHOLE,
            },
            "content": _IM_END,
        },
    },
    "mistral": {
        "start_anchor": "[/INST]",
        "fields": {
            "tool_calls": {
                "open_pattern": r"\s*\[TOOL_CALLS\]\s*(?=\[)",
                "close": "</s>",
                "content": "json",
                "transform": _EACH,
                "transform_each": True,
            },
            "content": {"close": "</s>"},
        },
    },
    "mistral with arguments apart": {
        "start_anchor": "[/INST]",
        "fields": {
            "reasoning_content": {"open": "[THINK]", "close": "[/THINK]"},
            "tool_calls": {
                "open_pattern": rf"\[TOOL_CALLS\]{_NAME}\[ARGS\]",
                "close_pattern": r"(?=\[TOOL_CALLS\])|</s>",
                "repeats": True,
                "content": "json",
                "transform": _NAMED,
            },
            "content": {"close": "</s>"},
        },
    },
    "llama 3": {
        "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "fields": {
            "tool_calls": {
                "open_pattern": r'\A\s*(?:<\|python_tag\|>)?(?=\{\s*"name")',
                "close_pattern": r"<\|eot_id\|>|<\|eom_id\|>",
                "content": "json",
                "transform": _WHOLE,
            },
            "content": {"close_pattern": r"<\|eot_id\|>|<\|eom_id\|>"},
        },
    },
    "deepseek": {
        "start_anchor": "<｜Assistant｜>",
        "fields": {
            "reasoning_content": _THINK,
            "tool_calls": {
                "open_pattern": r"\s*(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
                rf"{_NAME}\n```json\n",
                "close_pattern": r"\n```<｜tool▁call▁end｜>",
                "repeats": True,
                "content": "json",
                "transform": _NAMED,
            },
            "content": {"close_pattern": r"\s*<｜tool▁calls▁end｜>|<｜end▁of▁sentence｜>"},
        },
    },
    "deepseek without fences": {
        "start_anchor": "<｜Assistant｜>",
        "fields": {
            "reasoning_content": _THINK,
            "tool_calls": {
                "open_pattern": rf"\s*(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>{_NAME}<｜tool▁sep｜>",
                "close": "<｜tool▁call▁end｜>",
                "repeats": True,
                "content": "json",
                "transform": _NAMED,
            },
            "content": {"close_pattern": r"\s*<｜tool▁calls▁end｜>|<｜end▁of▁sentence｜>|</think>"},
        },
    },
    "harmony": {
        "start_anchor": "<|start|>assistant",
        "fields": {
            "reasoning_content": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
            "tool_calls": {
                "open_pattern": rf"(?: to=functions\.{_NAME}<\|channel\|>commentary"
                rf"|<\|channel\|>commentary to=functions\.(?P<name>[\w.:-]+))"
                r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
                "close": "<|call|>",
                "repeats": True,
                "content": "json",
                "transform": _NAMED,
            },
            "content": {"open": "<|channel|>final<|message|>", "close": ["<|return|>", "<|end|>"]},
            "skipped": {},
        },
    },
}
"""By a name for people."""


def known_form(probes: Probes) -> tuple[dict[str, Any], CallForm]:
    """The response template of a form that is known here, and the form.

    Raises:
        NoCallFormError: It is none of these.
    """
    for template in KNOWN.values():
        try:
            return template, form_of(probes, template)
        except NoCallFormError:
            continue
    raise NoCallFormError(f"its chat template writes calls in none of the known forms: {', '.join(KNOWN)}")
