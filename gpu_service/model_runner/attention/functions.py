"""The attention functions of transformers that a model calls, and their replacement for a while.

A model's attention looks its function up by the name in its configuration, in each forward.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., Any]
"""(module, query [rows, heads, tokens, dim], key, value, mask, ...) -> (output [rows, tokens, heads, dim], weights)."""

_IMPLEMENTATION: Final = "_attn_implementation_internal"
"""Where a configuration keeps the name; the public attribute also changes those of parts that are not the decoder."""


class AttentionFunctions:
    """Those of one model."""

    def __init__(self, module: nn.Module) -> None:
        """Reads the names.

        Args:
            module: transformers' model.
        """
        configs = {id(config): config for child in module.modules() if (config := getattr(child, "config", None))}
        self._names = {
            key: (config, getattr(config, _IMPLEMENTATION))
            for key, config in configs.items()
            if isinstance(getattr(config, _IMPLEMENTATION, None), str)
        }
        self._functions: dict[tuple[type[nn.Module], str], AttentionFunction] = {}

    @contextmanager
    def replaced_by(self, name: str) -> Iterator[None]:
        """Lets the model call the function of another name within a `with` block."""
        try:
            for config, _ in self._names.values():
                setattr(config, _IMPLEMENTATION, name)
            yield
        finally:
            for config, own in self._names.values():
                setattr(config, _IMPLEMENTATION, own)

    def of(self, attention: nn.Module) -> AttentionFunction:
        """The function that an attention module calls if nothing replaces it."""
        config: Any = attention.config
        name = self._names[id(config)][1]
        key = type(attention), name
        if key not in self._functions:
            seen = inspect.unwrap(type(attention).forward).__globals__
            interface = seen.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
            self._functions[key] = interface.get_interface(name, seen.get("eager_attention_forward"))
        return self._functions[key]
