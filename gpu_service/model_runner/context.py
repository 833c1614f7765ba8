"""How many positions a model has, as its configuration says. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Any, Final

from gpu_service.model_runner.rope_angles import rope_parameters

_FINAL: Final = ("default", "llama3", "longrope", "su", "proportional")
"""Types of RoPE with which max_position_embeddings is the scaled number already."""

_UNLIMITED: Final = 2**20
"""Positions of a model whose configuration names no limit, such as a recurrent one."""


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """The positions that a model has, and what says so."""

    num_tokens: int
    reason: str
    """The fields of config.json and their values."""


def context_limit(config: Any) -> ContextLimit | None:
    """The limit of a decoder; None if its configuration has none.

    A RoPE of type yarn scales its original_max_position_embeddings, and one of another type with a factor scales
    max_position_embeddings. Published configurations have the product in max_position_embeddings, or the model's number
    before scaling, so that the larger of the two counts.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    limits = [ContextLimit(positions, f"max_position_embeddings {positions}")]
    if not str(config.model_type).startswith("gemma"):  # their numbers are final, whatever their types are
        limits += [limit for rope in rope_parameters(config).values() if (limit := _scaled(rope, positions))]
    return max(limits, key=lambda limit: limit.num_tokens)


def _scaled(rope: Any, positions: int) -> ContextLimit | None:
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    if kind in _FINAL or not isinstance(factor, int | float) or not math.isfinite(factor):
        return None
    name, base = "max_position_embeddings", positions
    if kind == "yarn" and isinstance(original := rope.get("original_max_position_embeddings"), int):
        name, base = "original_max_position_embeddings", original
    return ContextLimit(int(factor * base), f"{name} {base} x factor {factor:g} of rope type {kind}")


def positions(limit: ContextLimit | None, asked: int | None) -> int:
    """The positions to serve: those that the model has, or fewer if fewer are asked for."""
    num_tokens = limit.num_tokens if limit else _UNLIMITED
    return num_tokens if asked is None else min(asked, num_tokens)
