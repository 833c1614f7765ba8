"""What stands in the place of MoE blocks whose experts do not take rows, expert ids and routing weights.

Each builds the router and whatever else its block has by transformers' own classes and under their names, so that the
checkpoint loads, and hands (rows, expert ids, routing weights) on as transformers' experts interface does.
"""

from collections.abc import Callable, Mapping
from importlib import import_module

from torch import nn

Replacements = Mapping[type[nn.Module], type[nn.Module]]
"""What is built in the place of a model's classes: a MoeLayer, or a block that has one."""


def replacing(class_path: str, replacement: type[nn.Module]) -> Callable[[], Replacements]:
    """What puts something in the place of one of transformers' classes.

    Args:
        class_path: Where transformers has the class, as in "dbrx.modeling_dbrx.DbrxExperts".
        replacement: What is built instead, with the same arguments.
    """
    module_path, _, class_name = class_path.rpartition(".")

    def replacements() -> Replacements:
        return {getattr(import_module(f"transformers.models.{module_path}"), class_name): replacement}

    return replacements
