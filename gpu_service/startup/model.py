"""Loads what is served and computes the first tokens with it. It waits for nobody: server.py does."""

import time

import structlog
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import UnknownActivationError
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.errors import ModelError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.loading import logging_of_transformers
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.sampling.parameters import not_honoured
from gpu_service.sampling.rules import check_generation_config
from gpu_service.settings import Settings
from gpu_service.startup.device_memory import free_bytes, out_of_memory_reported
from gpu_service.text.tokenizer import Tokenizer

_log = structlog.get_logger("gpu_service")


def load(
    settings: Settings, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, experts: ExpertClient
) -> tuple[Model, Tokenizer]:
    """The dense part of a model, whose experts `experts` has computed, and its tokenizer.

    Raises:
        ModelError: It cannot be served.
        FlagError: The device has too little memory.
    """
    started = time.monotonic()
    logging_of_transformers()
    tokenizer = Tokenizer(checkpoint.directory)
    # on the CPU the experts are at hand; a GPU has them brought when the service is lost
    try:
        in_process = InProcessExperts(checkpoint) if device.type == "cpu" else None
        dispatcher = Dispatcher(checkpoint, device, experts, in_process=in_process)
    except UnknownActivationError as error:
        raise ModelError(f"{checkpoint.directory}: {error}") from None
    with out_of_memory_reported(device, "the model"):
        model = Model(
            checkpoint,
            dispatcher,
            device=device,
            dtype=dtype,
            num_rows=settings.max_slots,
            max_context=settings.max_context,
        )
    check_generation_config(checkpoint.directory, model.generation_config)
    if ignored := not_honoured(model.generation_config, model.start_token_id is not None):
        file = checkpoint.directory / "generation_config.json"
        _log.warning("settings that are not honoured", file=str(file), settings=ignored)
    _log.info("loaded", seconds=round(time.monotonic() - started, 2), dense_bytes=checkpoint.dense_bytes)
    return model, tokenizer


def warm_up(settings: Settings, model: Model) -> KvBudget:
    """Two tokens through both services: memory is taken, kernels are chosen, and a pair that cannot work fails.

    Raises:
        FlagError: --kv-memory does not hold two tokens, or the device has too little memory for it.
    """
    started = time.monotonic()
    token = torch.zeros(1, 1, dtype=torch.int64)
    cache = model.cache
    with out_of_memory_reported(model.device, "a token and the keys and values (--kv-memory)"), torch.inference_mode():
        cache.set_capacity(2)
        for position in range(2):
            model.forward(token, token + position, first_row=0, wants=Logits.LAST)
            cache.measure(0)
        budget = KvBudget.resolve(
            settings.kv_memory,
            token_bytes=cache.token_bytes,
            max_rows=settings.max_slots,
            max_length=model.max_context,
            free_bytes=free_bytes(model.device),
            row_bytes=cache.row_bytes,
        )
        cache.set_capacity(budget.num_tokens)
    model.dispatcher.clear_counts()
    _log.info("warm", seconds=round(time.monotonic() - started, 2), kv_bytes=cache.allocated_bytes)
    return budget
