"""Which keys a model's own code lets each attention layer see, found by computing two tokens without experts.

A configuration does not say it: a class may ignore its sliding_window or its layer_types.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from gpu_service.moe.layer import MoeLayer


def visible_keys(module: nn.Module, positions: torch.Tensor) -> dict[int, torch.Tensor]:
    """What the masks of a model's layers show.

    Args:
        module: transformers' model, whose MoeLayers need not be connected.
        positions: [queries] int64 on the CPU.

    Returns:
        By decoder layer: [queries, the largest position + 1] bool, True if the query sees the key. A layer is left out
        if its mask is not one that transformers' functions have made.
    """
    config: Any = module.config
    text_config = config.get_text_config(decoder=True)
    device = next(module.parameters()).device
    token_ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    visible: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_without_experts(module))
        made = stack.enter_context(_recorded_masks(text_config._attn_implementation, positions))

        def note(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            mask = inspect.signature(layer.forward).bind(*inputs, **named).arguments.get("attention_mask")
            if id(mask) in made:
                visible[int(layer.layer_idx)] = made[id(mask)][1]  # type: ignore[arg-type]

        for each in module.modules():
            if isinstance(getattr(each, "layer_idx", None), int) and _takes_mask(each):
                stack.enter_context(_removed(each.register_forward_pre_hook(note, with_kwargs=True)))
        first_two = torch.arange(2, device=device)[None]
        module(input_ids=token_ids, position_ids=first_two, past_key_values=DynamicCache(config=config), use_cache=True)
    return visible


def _takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(module.forward).parameters


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without_experts(module: nn.Module) -> Iterator[None]:
    """Lets routed experts give zeros."""
    layers: list[Any] = [each for each in module.modules() if isinstance(each, MoeLayer)]
    for layer in layers:
        layer.forward = lambda hidden, *_: torch.zeros_like(hidden)
        layer.begin = lambda rows, *_: lambda: torch.zeros_like(rows)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward, layer.begin


@contextmanager
def _recorded_masks(implementation: str, positions: torch.Tensor) -> Iterator[dict[int, tuple[Any, torch.Tensor]]]:
    """By the id of each mask that is made: the mask, so that its id remains its own, and what it shows."""
    functions = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    original: Any = functions[implementation]
    made: dict[int, tuple[Any, torch.Tensor]] = {}

    def record(*, mask_function: Any, device: Any, **more: Any) -> Any:
        # None would stand for "causal"; the layers that get it could not be told apart
        mask = original(mask_function=mask_function, device=device, **(more | {"allow_is_causal_skip": False}))
        first = torch.zeros((), dtype=torch.int64, device=device)
        queries, keys = positions[:, None].to(device), torch.arange(int(positions.max()) + 1, device=device)[None]
        made[id(mask)] = mask, mask_function(first, first, queries, keys).expand(len(queries), keys.shape[1]).cpu()
        return mask

    functions[implementation] = record
    try:
        yield made
    finally:
        functions[implementation] = original
