"""Loads transformers' model of a checkpoint with its experts replaced, so that no byte of an expert is read."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import torch
from torch import nn
from transformers import modeling_utils

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner.dense.formats import PLAIN, DensePlan
from gpu_service.model_runner.dense.loading import load_coded
from gpu_service.model_runner.reading.config import logging_of_transformers, read_config
from gpu_service.model_runner.reading.config_reads import blame_conditions, blame_tensors
from gpu_service.model_runner.reading.dense_state import LazyState
from gpu_service.model_runner.reading.expert_check import check_experts
from gpu_service.model_runner.reading.reporting import quiet, reported_as
from gpu_service.models.registry import (
    Architecture,
    Replacements,
    architecture_of,
    experts_by_interface,
)
from gpu_service.moe.layer import MoeLayer

__all__ = [
    "find_replacements",
    "load",
    "load_state",
    "logging_of_transformers",
    "read_config",
]

_FAR: Final = 2
"""Weights for each byte from which on a model is refused by its size; smaller faults are reported tensor by tensor."""

_MOST_BLAMED: Final = 50
"""Tensors whose shapes are traced to settings; further ones are of further layers."""

_SCALE_OF_KV_CACHE: Final = re.compile(r".*\.(?:[kqv]|kv|[kv]_proj\.(?:[kv]|output))_scale")
"""For keys and values in 8 bits; they are in the model's dtype here, so that the scale is not used."""


def load(checkpoint: Checkpoint, config: Any, dtype: torch.dtype, plan: DensePlan = PLAIN) -> nn.Module:
    """The model on the CPU, in evaluation mode, with MoeLayers in the place of its experts.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        dtype: Of the model.
        plan: Which linear layers are kept in codes.

    Raises:
        ModelError: Its experts cannot be replaced, or tensors are missing, left over, or of a wrong shape.
    """
    if plan.is_plain or not (plan.codes_in or checkpoint.has_coded_dense):
        return load_state(checkpoint, config, dtype, LazyState(checkpoint, dtype))
    return load_coded(checkpoint, dtype, plan, partial(load_state, checkpoint, config, dtype))


def load_state(checkpoint: Checkpoint, config: Any, dtype: torch.dtype, state: Mapping[str, Any]) -> nn.Module:
    """The same with tensors that stand for the checkpoint's.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        dtype: Of the model.
        state: What is loaded, by the names of the checkpoint.
    """
    architecture = architecture_of(config.model_type)
    replacements = find_replacements(checkpoint, config, architecture)
    with (
        quiet(),
        _replaced(replacements),
        reported_as(f"{checkpoint.directory}: transformers cannot load it", config),
    ):
        # an auto class does not take a state_dict
        loaded: Any = architecture.class_of(config).from_pretrained(
            None,
            state_dict=dict(state),
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_report reports them, with both shapes
        )
    module, report = loaded
    _check_report(checkpoint, module, report)
    return cast("nn.Module", module.eval())


def find_replacements(checkpoint: Checkpoint, config: Any, architecture: Architecture) -> Replacements:
    """Which of the model's classes are replaced by what; found on a model without memory if the architecture has none.

    Raises:
        ModelError: The experts cannot be replaced, or compute something that is not supported.
    """
    what = f"{checkpoint.directory}: transformers cannot build a {config.model_type} that generates text"
    with quiet(), reported_as(what, config):
        known = architecture.replacements()
        # replaced here, too, if known: building thousands of experts takes long even without memory
        with _replaced(known), torch.device("meta"):
            skeleton: Any = architecture.auto_class.from_config(config)
    replacements = known or experts_by_interface(skeleton)
    if not replacements and not any(isinstance(module, MoeLayer) for module in skeleton.modules()):
        raise ModelError(f"{checkpoint.directory}: {_why_no_experts(skeleton, config)}")
    _check_size(checkpoint, skeleton, replacements)
    check_experts(checkpoint, skeleton)
    return replacements


def _why_no_experts(skeleton: nn.Module, config: Any) -> str:
    """Why a model has no experts that could be replaced: its family has none such, or no layer is to have any."""
    classes = inspect.getmembers(inspect.getmodule(type(skeleton)), inspect.isclass)
    if any(hasattr(cls, "_apply_gate") for _, cls in classes):
        return f"by its config.json no layer has experts{blame_conditions(skeleton, config)}"
    return (
        f"the experts of {config.model_type} do not have transformers' experts interface, so that they cannot be "
        "computed elsewhere"
    )


def _check_size(checkpoint: Checkpoint, skeleton: Any, replacements: Replacements) -> None:
    """Refuses a configuration of a far larger model: transformers would take memory for all of it before it fails."""
    ours = (*replacements, *replacements.values(), MoeLayer)
    modules = [cast("nn.Module", module) for module in skeleton.modules() if isinstance(module, ours)]
    replaced = {id(each) for module in modules for each in module.parameters()}
    tensors = (*skeleton.named_parameters(), *skeleton.named_buffers())
    sizes = {name: each.numel() for name, each in tensors if id(each) not in replaced}
    num_weights = sum(sizes.values())
    if num_weights > _FAR * max(checkpoint.dense_bytes, checkpoint.num_dense_weights):
        raise ModelError(
            f"{checkpoint.directory}: config.json describes a {checkpoint.model_type} of {num_weights} weights without "
            f"its experts, far more than the {checkpoint.dense_bytes} bytes that the checkpoint has for them"
            f"{blame_tensors(skeleton, [max(sizes, key=lambda name: sizes[name])], skeleton.config)}"
        )


@contextmanager
def _replaced(replacements: Replacements) -> Iterator[None]:
    """Lets transformers build the replacements instead of these classes.

    Its own `apply_patches` asks `dir` of every module of transformers for each model that is built, which takes 0.4 s,
    and keeps the replacements if building raises.
    """
    modeling: Any = modeling_utils
    own = modeling.apply_patches
    modeling.apply_patches = lambda: _while_built(replacements)
    try:
        yield
    finally:
        modeling.apply_patches = own


@contextmanager
def _while_built(replacements: Replacements) -> Iterator[None]:
    """Replaces the classes in the modules that use them. What follows building, such as loading, sees the originals."""
    names = {cls.__name__: cls for cls in replacements}
    places = [
        (module, name, cls)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("transformers.")
        for name, cls in names.items()
        if vars(module).get(name) is cls
    ]
    try:
        for module, name, cls in places:
            setattr(module, name, replacements[cls])
        yield
    finally:
        for module, name, cls in places:
            setattr(module, name, cls)


def _check_report(checkpoint: Checkpoint, module: Any, report: dict[str, Any]) -> None:
    """Refuses missing tensors, and those left over that are not experts of the checkpoint."""
    where = checkpoint.directory
    if report["missing_keys"]:
        blamed = blame_tensors(module, sorted(report["missing_keys"])[:_MOST_BLAMED], module.config, only_odd=True)
        raise ModelError(f"{where}: the checkpoint lacks {_first_names(report['missing_keys'])}{blamed}")
    if report["mismatched_keys"]:
        wrong = [f"{name} is {list(stored)}, not {list(due)}" for name, stored, due in report["mismatched_keys"]]
        blamed = blame_tensors(
            module, sorted(name for name, *_ in report["mismatched_keys"])[:_MOST_BLAMED], module.config
        )
        raise ModelError(f"{where}: wrong shape: {_first_names(wrong)}{blamed}")
    experts = tuple(f"{name}." for name, child in module.named_modules() if isinstance(child, MoeLayer))
    left_over = {
        key
        for key in report["unexpected_keys"]
        if key not in checkpoint.expert_tensor_names
        and not checkpoint.is_unused(key)  # transformers reports the names that tensors would have in the model
        and not key.startswith(experts)
        and not (checkpoint.is_coded and _SCALE_OF_KV_CACHE.fullmatch(key))
    }
    if left_over:
        raise ModelError(f"{where}: the model has no place for {_first_names(left_over)}")


def _first_names(keys: Any) -> str:
    """The first five of several names, in a sentence."""
    names = sorted(str(key) for key in keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
