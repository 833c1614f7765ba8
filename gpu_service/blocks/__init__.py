"""What stands in the place of MoE blocks whose experts do not take rows, expert ids and routing weights.

Each builds the router and whatever else its block has by transformers' own classes and under their names, so that the
checkpoint loads, and hands (rows, expert ids, routing weights) on as transformers' experts interface does.
"""

from collections.abc import Callable, Mapping

from torch import nn


def replacing(
    class_name: str, replacement: type[nn.Module]
) -> Callable[[nn.Module], Mapping[type[nn.Module], type[nn.Module]]]:
    """What puts something in the place of a model's class: for gpu_service.architectures.Architecture.replacements.

    Args:
        class_name: transformers' name of the class.
        replacement: What is built instead, with the same arguments.
    """

    def replacements(skeleton: nn.Module) -> Mapping[type[nn.Module], type[nn.Module]]:
        return {type(module): replacement for module in skeleton.modules() if type(module).__name__ == class_name}

    return replacements
