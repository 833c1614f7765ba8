"""Loads the model and its tokenizer, and computes the first tokens. server.py waits for the CPU expert service."""

import time

import structlog
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.running.progress import Stage
from fiddler.sizes import format_bytes
from gpu_service import metrics
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.errors import ExpertServiceError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.reading.reporting import failures_of_models_reported
from gpu_service.model_runner.trial import CacheSizes
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.sampling.parameters import not_honoured
from gpu_service.settings import Settings
from gpu_service.startup.checks import check
from gpu_service.startup.device_memory import free_bytes, out_of_memory_reported
from gpu_service.startup.kv_plan import plan
from gpu_service.text.tokenizer import Tokenizer

_log = structlog.get_logger("gpu_service")


def load_model(
    settings: Settings, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, experts: ExpertClient
) -> tuple[Model, Tokenizer]:
    """Loads the dense part of a model, and its tokenizer.

    Args:
        settings: The user's.
        checkpoint: The weights.
        device: Where all but the experts is computed.
        dtype: What it is computed in.
        experts: Computes the experts; it need not be connected yet.

    Raises:
        ModelError: The model cannot be served.
        FlagError: The device has too little memory.
    """
    started = time.monotonic()
    tokenizer = check(settings, checkpoint, device=device, dtype=dtype).tokenizer
    _log_chat_templates(tokenizer)
    # if the CPU expert service is lost, a CPU computes its experts in this process, and a GPU streams them
    in_process = InProcessExperts(checkpoint) if device.type == "cpu" else None
    dispatcher = Dispatcher(checkpoint, device, experts, in_process=in_process)
    _log.info("loading dense weights", size=format_bytes(checkpoint.dense_bytes), device=str(device))
    with out_of_memory_reported(device, "the model"), Stage("loading dense weights"):
        model = Model(
            checkpoint,
            dispatcher,
            device=device,
            dtype=dtype,
            num_rows=settings.max_slots,
            max_context=None if settings.max_context == "auto" else settings.max_context,
            dense_format=settings.dense_format,
            uses_graphs=settings.cuda_graphs != "off",
        )
    if ignored := not_honoured(model.generation_config, model.start_token_id is not None):
        file = checkpoint.directory / "generation_config.json"
        _log.warning("generation settings ignored", file=str(file), settings=ignored)
    asked = settings.max_context
    if model.context_limit and asked != "auto" and model.max_context < asked:
        _log.info(
            "context limited by config.json",
            asked=asked,
            max_context=model.max_context,
            limit=model.context_limit.reason,
        )
    metrics.DENSE_WEIGHT_BYTES.labels(model.dense.format).set(model.dense.num_bytes)
    _log.info(
        "model loaded",
        seconds=round(time.monotonic() - started, 2),
        dense_format=model.dense.format,
        dense=format_bytes(model.dense.num_bytes),
    )
    if model.why_not_packed is not None:
        _log.info("prompts are computed one after another, in turn with decoding", reason=model.why_not_packed)
    return model, tokenizer


def _log_chat_templates(tokenizer: Tokenizer) -> None:
    templates = tokenizer.chat_templates
    for name, reason in templates.broken.items():
        _log.warning("chat template does not work", template=name, reason=reason)
    if templates.names:
        _log.info("chat templates found", templates=", ".join(templates.names))


def _fit_context(model: Model, budget: KvBudget) -> None:
    """Lowers the model's context to what the memory for keys and values holds of one sequence."""
    limit, length = model.max_context, budget.max_length
    model.max_context = length
    reason = model.context_limit.reason if model.context_limit else "the model has no limit"
    _log.info("context chosen", tokens=length, limited_by="--kv-memory" if length < limit else reason)


def check_graphs(model: Model) -> None:
    """Captures a decode step as CUDA graphs, if the model uses them, and compares it with the same step without them.

    Before there are requests: what wrong graphs write into the cache would be a request's.
    """
    if not model.uses_graphs:
        return
    began = time.monotonic()
    token = torch.zeros(1, 1, dtype=torch.int64)
    try:
        with out_of_memory_reported(model.device, "a decode step"), torch.inference_mode():
            for position in range(2):  # the first one is computed as it is, and the second one sees it
                model.forward(token, token + position, first_row=0, wants=Logits.LAST)
    except ExpertServiceError:  # the client has reported it; the first request's steps are compared instead
        return
    if model.uses_graphs:
        _log.info("decode captured as CUDA graphs", seconds=round(time.monotonic() - began, 2))


def warm_up(settings: Settings, model: Model) -> KvBudget:
    """Computes two tokens: this allocates memory, chooses kernels, and fails if the two services cannot work together.

    Returns:
        The memory that the KV cache may use.

    Raises:
        FlagError: --kv-memory does not hold two tokens, or the device has too little memory for it.
        ModelError: The model's code cannot compute with its configuration.
    """
    started = time.monotonic()
    token = torch.zeros(1, 1, dtype=torch.int64)
    cache = model.cache
    purpose = "a token and the keys and values (--kv-memory)"
    with out_of_memory_reported(model.device, purpose), torch.inference_mode(), Stage("computing the first token"):
        cache.set_capacity(2)
        for position in range(2):
            with failures_of_models_reported(model.config):
                model.forward(token, token + position, first_row=0, wants=Logits.LAST)
            cache.measure(0)
        sizes = CacheSizes(token_bytes=cache.token_bytes, row_bytes=cache.row_bytes)
        budget = plan(
            settings, sizes, max_context=model.max_context, device=model.device, free_bytes=free_bytes(model.device)
        )
        if settings.max_context == "auto":
            _fit_context(model, budget)
        cache.set_capacity(budget.num_tokens)
    model.dispatcher.clear_counts()
    _log.info("warm-up done", seconds=round(time.monotonic() - started, 2), kv=format_bytes(cache.allocated_bytes))
    return budget
