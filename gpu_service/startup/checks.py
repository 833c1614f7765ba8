"""All that can be checked of a checkpoint before a weight is read: one list, for a start and for the dry run."""

import re
from dataclasses import dataclass
from typing import Final

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.moe_config import settings_of
from fiddler.expert_math import UnknownActivationError, layer_combination
from gpu_service.calibration.costs import check_file
from gpu_service.errors import ModelError
from gpu_service.model_runner.context import context_limit, positions
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.sizes import DenseSizes
from gpu_service.model_runner.loading import logging_of_transformers, read_config
from gpu_service.model_runner.trial import CacheSizes, try_model
from gpu_service.models.generation_config import read_generation_config
from gpu_service.models.registry import architecture_of
from gpu_service.placement.policies import required_popularity
from gpu_service.placement.popularity import Popularity
from gpu_service.sampling.rules import check_generation_config
from gpu_service.settings import Settings
from gpu_service.startup.device_memory import check_dense_weights
from gpu_service.text.tokenizer import Tokenizer

_PER_TOKEN: Final = re.compile(r"per_tok|top_?k|moe_k")
"""Names of the setting that says how many experts a token is routed to."""
_EXPERTS_PER_TOKEN: Final = re.compile(r"experts_per_tok")
"""Those of them that cannot mean anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the checks have read on their way."""

    tokenizer: Tokenizer
    experts_per_token: int
    """0 if the configuration does not say."""
    cache: CacheSizes | None
    """What the model keeps of a sequence; None if only computing shows it."""
    max_context: int
    """Positions that the model has and the user asks for."""
    dense: DenseSizes


def check(settings: Settings, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Checked:
    """Makes sure that a start fails with nothing that headers, configurations and flags tell.

    Args:
        settings: The user's.
        checkpoint: The checkpoint.
        device: What is computed on.
        dtype: What the dense part is computed in.

    Raises:
        UserError: A start would fail.
    """
    logging_of_transformers()
    config = read_config(checkpoint.directory)
    check_generation_config(checkpoint.directory, read_generation_config(checkpoint.directory, config))
    tokenizer = Tokenizer(checkpoint.directory)
    experts_per_token = architecture_of(config.model_type).num_experts_per_token(config)
    check_routing(checkpoint, experts_per_token)
    try:
        for layer in checkpoint.layers:
            layer_combination(layer.activation)
    except UnknownActivationError as error:
        raise ModelError(f"{checkpoint.directory}: {error}") from None
    plan = DensePlan.resolve(settings.dense_format, device)
    check_dense_weights(checkpoint, device=device, dtype=dtype, plan=plan)
    tried = try_model(checkpoint, config, dtype)
    _check_placement(settings, checkpoint, device)
    if settings.costs is not None and not settings.recalibrate:
        check_file(settings.costs, checkpoint)
    asked = None if settings.max_context == "auto" else settings.max_context
    max_context = positions(context_limit(config.get_text_config(decoder=True)), asked)
    return Checked(
        tokenizer=tokenizer,
        experts_per_token=experts_per_token,
        cache=tried.cache,
        max_context=max_context,
        dense=tried.dense,
    )


def check_routing(checkpoint: Checkpoint, experts_per_token: int) -> None:
    """Checks that a token is routed to experts, and that a layer has as many.

    Raises:
        ModelError: It has fewer, or none is asked for.
    """
    sections = (checkpoint.config, checkpoint.config.get("text_config"))
    for name, value in (item for section in sections if isinstance(section, dict) for item in section.items()):
        if _EXPERTS_PER_TOKEN.search(name) and isinstance(value, int) and value < 1:
            raise ModelError(f"{checkpoint.directory / 'config.json'}: {name}: must be at least 1, got {value}")
    most = max(layer.num_experts for layer in checkpoint.layers)
    if experts_per_token > most:
        settings = settings_of(checkpoint.config)
        names = [name for name, value in settings if value == experts_per_token and _PER_TOKEN.search(name)]
        field = f" ({names[0]})" if names else ""
        raise ModelError(
            f"{checkpoint.directory / 'config.json'}: a token is routed to {experts_per_token} experts{field}, and no "
            f"layer has more than {most}"
        )


def _check_placement(settings: Settings, checkpoint: Checkpoint, device: torch.device) -> None:
    popularity = Popularity.load(settings.popularity, checkpoint) if settings.popularity else None
    if settings.placement == "popularity" and device.type == "cuda":  # the CPU has slots only if flags ask for them
        required_popularity(popularity)
