"""Loads transformers' model of a checkpoint with its experts replaced, so that no byte of an expert is read."""

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import model_type_of
from gpu_service.errors import ModelError
from gpu_service.model_runner.dense_state import LazyState
from gpu_service.model_runner.expert_check import check_experts
from gpu_service.models.config_fields import FieldError
from gpu_service.models.registry import (
    Architecture,
    Replacements,
    architecture_of,
    configuration_of,
    experts_by_interface,
)
from gpu_service.moe.layer import MoeLayer

_FAR: Final = 2
"""Weights for each byte from which on a model is refused by its size; smaller faults are reported tensor by tensor."""

_SCALE_OF_KV_CACHE: Final = re.compile(r".*\.(?:[kqv]|kv|[kv]_proj\.(?:[kv]|output))_scale")
"""For keys and values in 8 bits; they are in the model's dtype here, so that the scale is not used."""


def logging_of_transformers() -> None:
    """Sends transformers' messages to this process's log instead of standard error."""
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_config(directory: Path) -> Any:
    """The model's configuration.

    Raises:
        CheckpointError: config.json is not a JSON object.
        ModelError: transformers has no such model, or a value is wrong, or the weights are quantised.
    """
    path = directory / "config.json"
    settings = read_json(path, ConfigError)
    model_type = model_type_of(settings) or ""
    own = configuration_of(model_type)
    if own is None and model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{path}: model_type: transformers {transformers.__version__} has no family {model_type!r}; a newer one may"
        )
    with _reported_as(f"{path}: transformers {transformers.__version__} cannot read it"):
        if own is None:
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        else:
            config = _read_own(own, settings, path)
    try:
        architecture_of(config.model_type).complete_config(config, settings)
    except FieldError as error:
        raise ModelError(f"{path}: {error}") from None
    _forget_quantization(config)
    return config


def _forget_quantization(config: Any) -> None:
    """Removes quantization_config: weights are decoded here, and transformers would demand packages for its own way."""
    sections: tuple[Any, ...] = (config, getattr(config, "text_config", None))
    for section in sections:
        if hasattr(section, "quantization_config"):
            del section.quantization_config


def _read_own(configuration: Any, settings: dict[str, Any], path: Path) -> Any:
    try:
        return configuration.from_dict(settings)
    except FieldError as error:
        raise ModelError(f"{path}: {error}") from None


def load(checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model on the CPU, in evaluation mode, with MoeLayers in the place of its experts.

    Raises:
        ModelError: Its experts cannot be replaced, or tensors are missing, left over, or of a wrong shape.
    """
    architecture = architecture_of(config.model_type)
    replacements = find_replacements(checkpoint, config, architecture)
    with _quiet(), _replaced(replacements), _reported_as(f"{checkpoint.directory}: transformers cannot load it"):
        loaded: Any = _from_pretrained(checkpoint, architecture, config, dtype)
    module, report = loaded
    _check_report(checkpoint, module, report)
    return cast("nn.Module", module.eval())


def _from_pretrained(checkpoint: Checkpoint, architecture: Architecture, config: Any, dtype: torch.dtype) -> Any:
    # an auto class does not take a state_dict
    return architecture.class_of(config).from_pretrained(
        None,
        state_dict=dict(LazyState(checkpoint, dtype)),
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # _check_report reports them, with both shapes
    )


def find_replacements(checkpoint: Checkpoint, config: Any, architecture: Architecture) -> Replacements:
    """Which of the model's classes are replaced by what; found on a model without memory if the architecture has none.

    Raises:
        ModelError: The experts cannot be replaced, or compute something that is not supported.
    """
    what = f"{checkpoint.directory}: transformers cannot build a {config.model_type} that generates text"
    with _reported_as(what):
        known = architecture.replacements()
        # replaced here, too, if known: building thousands of experts takes long even without memory
        with _replaced(known), torch.device("meta"):
            skeleton = architecture.auto_class.from_config(config)
    replacements = known or experts_by_interface(skeleton)
    if not replacements and not any(isinstance(module, MoeLayer) for module in skeleton.modules()):
        raise ModelError(
            f"{checkpoint.directory}: the experts of {config.model_type} do not have transformers' experts interface, "
            "so that they cannot be computed elsewhere"
        )
    _check_size(checkpoint, skeleton, replacements)
    check_experts(checkpoint, skeleton)
    return replacements


def _check_size(checkpoint: Checkpoint, skeleton: nn.Module, replacements: Replacements) -> None:
    """Refuses a configuration of a far larger model: transformers would take memory for all of it before it fails."""
    ours = (*replacements, *replacements.values(), MoeLayer)
    replaced = {id(each) for module in skeleton.modules() if isinstance(module, ours) for each in module.parameters()}
    num_weights = sum(each.numel() for each in skeleton.parameters() if id(each) not in replaced)
    if num_weights > _FAR * max(checkpoint.dense_bytes, checkpoint.num_dense_weights):
        raise ModelError(
            f"{checkpoint.directory}: config.json describes a {checkpoint.model_type} of {num_weights} weights without "
            f"its experts, far more than the {checkpoint.dense_bytes} bytes that the checkpoint has for them"
        )


@contextmanager
def _reported_as(what: str) -> Iterator[None]:
    """Turns any exception of transformers into a ModelError; it raises many types for files that are wrong."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())  # some texts have many lines
        if "padding_idx" in text.lower():
            raise ModelError(f"{what}: pad_token_id: must be null or a token id of the vocabulary") from error
        raise ModelError(f"{what}: {type(error).__name__}: {text}") from error


@contextmanager
def _replaced(replacements: Replacements) -> Iterator[None]:
    """Lets transformers build the replacements instead of these classes.

    If building raises, transformers keeps the replacement in its modules even once it is unregistered, so the original
    is put back by hand.
    """
    originals = [(inspect.getmodule(cls), cls) for cls in replacements]
    patterns: dict[str, type[nn.Module]] = {f"^{cls.__name__}$": new for cls, new in replacements.items()}
    register_patch_mapping(patterns)
    try:
        yield
    finally:
        unregister_patch_mapping(list(patterns))
        for module, cls in originals:
            setattr(module, cls.__name__, cls)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers, which reports the experts as unexpected; _check_report checks its report instead."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _check_report(checkpoint: Checkpoint, module: nn.Module, report: dict[str, Any]) -> None:
    """Refuses missing tensors, and those left over that are not experts of the checkpoint."""
    where = checkpoint.directory
    if report["missing_keys"]:
        raise ModelError(f"{where}: the checkpoint lacks {_first_names(report['missing_keys'])}")
    if report["mismatched_keys"]:
        wrong = [f"{name} is {list(stored)}, not {list(due)}" for name, stored, due in report["mismatched_keys"]]
        raise ModelError(f"{where}: wrong shape: {_first_names(wrong)}")
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
