"""How much memory keys and values take, and how long a context they hold: for a start and for the dry run."""

from dataclasses import replace

import torch

from gpu_service.engine.kv_budget import KvBudget
from gpu_service.model_runner.trial import CacheSizes
from gpu_service.settings import Settings
from gpu_service.startup.device_memory import check_kv_cache


def plan(settings: Settings, sizes: CacheSizes, *, max_context: int, device: torch.device, free_bytes: int) -> KvBudget:
    """The budget of keys and values.

    Args:
        settings: The user's.
        sizes: Bytes that tokens and rows take.
        max_context: The most tokens that the model has positions for, and that the user asks for.
        device: Where keys and values are stored.
        free_bytes: What is free there.

    Returns:
        The budget. With --max-context auto its longest row is what the memory holds of one sequence.

    Raises:
        FlagError: --kv-memory does not hold two tokens, or the host does not hold --kv-memory.
    """
    budget = KvBudget.resolve(
        settings.kv_memory,
        token_bytes=sizes.token_bytes,
        max_rows=settings.max_slots,
        max_length=max_context,
        free_bytes=free_bytes,
        row_bytes=sizes.row_bytes,
    )
    if settings.max_context == "auto":
        budget = replace(budget, max_length=budget.longest(1))
    check_kv_cache(budget, device)
    return budget
