"""Connects the MoeLayers of a loaded model with the checkpoint's layers and with what computes their experts."""

from typing import Any

from torch import nn

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.models.registry import Architecture
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.layer import MoeLayer
from gpu_service.moe.router import find_router


def connect(
    module: nn.Module,
    checkpoint: Checkpoint,
    architecture: Architecture,
    dispatcher: Dispatcher,
    *,
    alone: bool = False,
) -> dict[int, nn.Module]:
    """Completes every MoeLayer of a model.

    Args:
        module: The model.
        checkpoint: The experts.
        architecture: How the model was built.
        dispatcher: Computes the experts.
        alone: Leaves shared experts as they are, so that they are not computed meanwhile.

    Returns:
        The routers that are modules of their own, by the index of their layer among the checkpoint's.

    Raises:
        ModelError: A layer has experts in the model or in the checkpoint, and not in the other.
    """
    routers: dict[int, nn.Module] = {}
    by_name = {layer.name: index for index, layer in enumerate(checkpoint.layers)}
    by_decoder_layer = {layer.decoder_layer: index for index, layer in enumerate(checkpoint.layers)}
    connected = set()
    config: Any = module.config
    hidden_size = getattr(config.get_text_config(decoder=True), "hidden_size", None)
    for name, child in list(module.named_modules()):  # a list, since connecting adds modules to the blocks
        if not isinstance(child, MoeLayer):
            continue
        number = architecture.layer_number(name)
        index = by_name.get(name, None if number is None else by_decoder_layer.get(number))
        if index is None:
            raise ModelError(f"{checkpoint.directory}: the model has experts at {name}, and the checkpoint has none")
        block = module.get_submodule(name.rpartition(".")[0])
        child.connect(index, dispatcher, None if alone else block)
        # families with replacements of their own have routers that return no expert ids and weights; and where experts
        # are given projected rows, those say nothing to the next layer's router
        takes_rows = hidden_size in (None, checkpoint.layers[index].hidden_size)
        if takes_rows and not architecture.replaced and (router := find_router(block)):
            routers[index] = router
        connected.add(index)
    for index, layer in enumerate(checkpoint.layers):
        if index not in connected:
            raise ModelError(f"{checkpoint.directory}: the checkpoint has experts at {layer.name} that no layer uses")
    return routers
