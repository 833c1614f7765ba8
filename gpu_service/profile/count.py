"""Runs prompts through a model and writes how often each expert was chosen to the popularity file."""

import dataclasses
import queue
from collections.abc import Callable, Sequence
from functools import partial

import structlog
import torch
from tqdm import tqdm

from fiddler import tensors
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.engine.engine import Engine
from gpu_service.engine.events import Event, Failed, Finished
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.request import Request
from gpu_service.engine.scheduler import Scheduler
from gpu_service.errors import FlagError, PromptsError
from gpu_service.model_runner.loading import logging_of_transformers, read_config
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.threads import set_threads
from gpu_service.model_runner.trial import try_model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.placement.popularity import Popularity
from gpu_service.profile.prompts import Prompt
from gpu_service.profile.settings import Settings
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import SamplingParameters
from gpu_service.sampling.rules import check_generation_config
from gpu_service.startup.device import device_of
from gpu_service.startup.device_memory import out_of_memory_reported
from gpu_service.text.tokenizer import Tokenizer

_PREFILL_CHUNK = 256
_EXPERT_TIMEOUT_SECONDS = 60.0
_MAX_MESSAGE_BYTES = 64 * 2**20
_SEED = 0
_log = structlog.get_logger("gpu_service.profile")


def count(settings: Settings, prompts: Sequence[Prompt]) -> None:
    """Counts, and writes the popularity file.

    Raises:
        UserError: A flag, a file or the model is wrong.
        ExpertServiceError: The CPU expert service failed.
    """
    set_threads(settings.threads)
    logging_of_transformers()
    checkpoint = Checkpoint.open(settings.model)
    dtype = tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype)
    client = None
    if settings.experts is not None:
        client = ExpertClient(
            settings.experts,
            dtype,
            timeout_seconds=_EXPERT_TIMEOUT_SECONDS,
            max_message_bytes=_MAX_MESSAGE_BYTES,
            weight_format=checkpoint.weight_format,
        )
        client.connect(checkpoint.fingerprint)
    try:
        tokenizer = Tokenizer(checkpoint.directory)
        try_model(checkpoint, read_config(checkpoint.directory), dtype)
        with out_of_memory_reported(device_of(settings.device), "the model"):
            model = load_model(settings, checkpoint, experts=client or InProcessExperts(checkpoint), dtype=dtype)
            check_generation_config(checkpoint.directory, model.generation_config)
            requests = [_request(prompt, model, tokenizer, max_tokens=settings.max_tokens) for prompt in prompts]
            with tqdm(total=len(requests), desc="prompts", unit="prompt", disable=None) as bar:
                num_tokens = run(model, requests, max_slots=settings.max_slots, on_end=bar.update)
    finally:
        if client is not None:
            client.close()
    popularity = Popularity(
        tokens=num_tokens,
        counts=tuple(tuple(counts) for counts in model.dispatcher.selections.read()),
    )
    try:
        popularity.save(settings.out, checkpoint)
    except OSError as error:
        raise FlagError(f"--out: cannot write {settings.out}: {error.strerror}") from error
    _log.info("experts counted", prompts=len(prompts), tokens=popularity.tokens, file=str(settings.out))


def load_model(settings: Settings, checkpoint: Checkpoint, *, experts: RemoteExperts, dtype: torch.dtype) -> Model:
    """Loads the model; `experts` computes all of its experts."""
    device = device_of(settings.device)
    dispatcher = Dispatcher(checkpoint, device, experts)
    return Model(
        checkpoint,
        dispatcher,
        device=device,
        dtype=dtype,
        num_rows=settings.max_slots,
        max_context=settings.max_context,
    )


def run(model: Model, requests: Sequence[Request], *, max_slots: int, on_end: Callable[[], object]) -> int:
    """Runs all requests to their ends.

    Args:
        model: Computes them.
        requests: Their `emit` is replaced.
        max_slots: The most requests computed at one time.
        on_end: Called when a request ends.

    Returns:
        The tokens that were computed.

    Raises:
        Exception: A request failed with it.
    """
    ends: queue.SimpleQueue[tuple[Request, Event]] = queue.SimpleQueue()
    length = model.max_context
    budget = KvBudget(num_tokens=max_slots * length, token_bytes=1, max_rows=max_slots, max_length=length)
    model.cache.set_capacity(budget.num_tokens)
    scheduler = Scheduler(
        model.cache,
        budget,
        max_waiting=len(requests),
        chunks=PrefillChunks.uniform(_PREFILL_CHUNK),
        rope_angles=model.rope_angles,
        packs_spans=model.packs_spans,
    )
    engine = Engine(model, scheduler, lambda error: None)
    num_tokens = 0
    engine.start()
    try:
        for request in requests:
            engine.submit(dataclasses.replace(request, emit=partial(_emit, ends, request)))
        for _ in requests:
            request, end = ends.get()
            if isinstance(end, Failed):
                raise end.error
            assert isinstance(end, Finished)
            # the last token was generated but not computed, as was a prefix that another prompt had left in the cache
            num_tokens += len(request.prompt) - end.cached_prompt_tokens + end.completion_tokens - 1
            on_end()
    finally:
        engine.stop()
    return num_tokens


def _emit(ends: "queue.SimpleQueue[tuple[Request, Event]]", request: Request, event: Event) -> None:
    if isinstance(event, Finished | Failed):
        ends.put((request, event))


def _request(prompt: Prompt, model: Model, tokenizer: Tokenizer, *, max_tokens: int) -> Request:
    token_ids = tokenizer.encode(prompt.text)
    room = model.max_context - max_tokens
    if not 0 < len(token_ids) <= room:
        raise PromptsError(
            f"--prompts: {prompt.source}: {len(token_ids)} tokens; the context of {model.max_context} leaves room for "
            f"1 to {room} before the {max_tokens} to generate"
        )
    if max(token_ids) >= model.vocab_size:
        raise PromptsError(f"--prompts: {prompt.source}: a token is not one of the model's {model.vocab_size}")
    sampling = SamplingParameters.resolve(model.generation_config, {"seed": _SEED})
    ending = Ending(max_tokens, eos_ids=model.eos_ids)
    return Request(prompt=token_ids, sampling=sampling, ending=ending, emit=lambda event: None)
