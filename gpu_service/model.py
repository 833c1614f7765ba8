"""transformers' model without its experts: loading it, and one forward over rows of the slot cache."""

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping

from fiddler.checkpoint import Checkpoint
from gpu_service.moe_layer import HostStaging, MoeLayer, RemoteExperts, SelectionCounts
from gpu_service.slot_cache import SlotCache, attention_mask

_LAYER_NUMBER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class ModelError(Exception):
    """The checkpoint cannot be run. The text says what is missing."""


class Model:
    """The dense part of a checkpoint on one device, its experts computed by others."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        remote: RemoteExperts,
        device: torch.device,
        dtype: torch.dtype,
        num_slots: int,
        max_context: int,
    ) -> None:
        """Loads the dense weights; reads no expert.

        Raises:
            ModelError: transformers has no such model, or tensors are missing or left over.
        """
        self.device = device
        self.dtype = dtype
        config = _read_config(checkpoint.directory)
        self._module = _load(checkpoint, config, dtype).to(device)
        self._module.requires_grad_(False)
        self.generation_config = cast("GenerationConfig", self._module.generation_config)
        self.text_config = config.get_text_config(decoder=True)
        self.vocab_size = int(self.text_config.vocab_size)
        self.max_context = min(max_context, getattr(self.text_config, "max_position_embeddings", None) or max_context)
        self.cache = SlotCache(num_slots, self.max_context)
        self.selections = SelectionCounts([layer.num_experts for layer in checkpoint.layers])
        self._windows = _attention_windows(self.text_config)
        self._connect(checkpoint, remote)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a generation."""
        ids = self.generation_config.eos_token_id
        if ids is None:
            ids = self.text_config.eos_token_id
        return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)

    @property
    def num_experts_per_token(self) -> int:
        """Experts that each token uses in a MoE layer."""
        names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
        return next((value for name in names if isinstance(value := getattr(self.text_config, name, None), int)), 0)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, wants_logits: bool
    ) -> torch.Tensor | None:
        """Computes tokens of adjacent rows and stores their keys and values.

        Args:
            token_ids: [requests, tokens] int64 on the CPU. More than one token only for one request.
            positions: [requests, tokens] int64 on the CPU, ascending runs.
            first_row: The cache's row of the first request.
            wants_logits: False where nobody looks at them.

        Returns:
            [requests, vocab] float32: the logits after each request's last token; None where nobody wants them.
        """
        self.cache.begin(first_row, positions, self.device)
        positions = positions.to(self.device)
        output = self._module(
            input_ids=token_ids.to(self.device),
            position_ids=positions,
            attention_mask=self._masks(positions),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].to(torch.float32) if wants_logits else None

    def _masks(self, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """The mask, or one for each layer type where the model has several."""
        masks = {
            layer_type: attention_mask(positions, self.cache.length, window)
            for layer_type, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _connect(self, checkpoint: Checkpoint, remote: RemoteExperts) -> None:
        by_decoder_layer = {layer.decoder_layer: index for index, layer in enumerate(checkpoint.layers)}
        staging = HostStaging(self.device)
        connected = set()
        for name, module in self._module.named_modules():
            if not isinstance(module, MoeLayer):
                continue
            match = _LAYER_NUMBER.search(name)
            index = by_decoder_layer.get(int(match[1])) if match else None
            if index is None:
                raise ModelError(
                    f"{checkpoint.directory}: the model has experts at {name}, and the checkpoint has none"
                )
            module.connect(index, checkpoint.layers[index].num_experts, remote, self.selections, staging)
            connected.add(index)
        for index, layer in enumerate(checkpoint.layers):
            if index not in connected:
                raise ModelError(
                    f"{checkpoint.directory}: the checkpoint has experts at {layer.name} that no layer uses"
                )


def _read_config(directory: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        known = f"transformers {transformers.__version__}"
        raise ModelError(f"{directory / 'config.json'}: {known} has no such model: {error}") from error


def _load(checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> nn.Module:
    classes = _experts_classes(checkpoint, config)
    with _quiet(), _replaced(classes):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.directory,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_report tells them, with both shapes
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{checkpoint.directory}: {error}") from error
    module, report = loaded
    _check_report(checkpoint, module, report)
    return cast("nn.Module", module.eval())


def _experts_classes(checkpoint: Checkpoint, config: Any) -> set[type[nn.Module]]:
    """The classes of the model's experts, found by transformers' experts interface on a model without memory."""
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ModelError(f"{checkpoint.directory}: {config.model_type} does not generate text: {error}") from error
    classes = {type(module) for module in skeleton.modules() if hasattr(module, "_apply_gate")}
    if not classes:
        raise ModelError(
            f"{checkpoint.directory}: the experts of {config.model_type} do not have transformers' experts interface, "
            "so that they cannot be computed elsewhere"
        )
    return classes


@contextmanager
def _replaced(classes: set[type[nn.Module]]) -> Iterator[None]:
    """Lets transformers build MoeLayer for these classes.

    transformers keeps the replacement in its modules where building raises, even once it is unregistered; so what was
    there is put back by hand.
    """
    originals = [(inspect.getmodule(cls), cls) for cls in classes]
    names = [cls.__name__ for cls in classes]
    register_patch_mapping({f"^{name}$": MoeLayer for name in names})
    try:
        yield
    finally:
        unregister_patch_mapping([f"^{name}$" for name in names])
        for module, cls in originals:
            setattr(module, cls.__name__, cls)


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers reports the experts as unexpected, which is what is wanted here; _check_report judges instead."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _check_report(checkpoint: Checkpoint, module: nn.Module, report: dict[str, Any]) -> None:
    """Nothing may be missing, and what is left over must be experts that the checkpoint's table claims."""
    where = checkpoint.directory
    if report["missing_keys"]:
        raise ModelError(f"{where}: the checkpoint lacks {_names(report['missing_keys'])}")
    if report["mismatched_keys"]:
        wrong = [f"{name} is {list(stored)}, not {list(due)}" for name, stored, due in report["mismatched_keys"]]
        raise ModelError(f"{where}: wrong shape: {_names(wrong)}")
    experts = tuple(f"{name}." for name, child in module.named_modules() if isinstance(child, MoeLayer))
    left_over = {
        key
        for key in report["unexpected_keys"]
        if key not in checkpoint.expert_tensor_names and not key.startswith(experts)
    }
    if left_over:
        raise ModelError(f"{where}: the model has no place for {_names(left_over)}")


def _names(keys: Any) -> str:
    names = sorted(str(key) for key in keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _attention_windows(config: Any) -> dict[str, int | None]:
    """The sliding window of each type of attention layer; None where it sees everything.

    Raises:
        ModelError: Layers of a type whose state the slot cache does not hold.
    """
    window = getattr(config, "sliding_window", None) or None
    types = set(getattr(config, "layer_types", None) or [])
    if not types:
        return {"attention": window}
    if unknown := types - {"full_attention", "sliding_attention"}:
        raise ModelError(f"{config.model_type} has layers of type {_names(unknown)}, which are not supported")
    return {layer_type: window if layer_type == "sliding_attention" else None for layer_type in types}
