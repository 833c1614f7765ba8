"""One step of the engine: a batch is computed, and every request is given what the batch made of it.

It runs in one thread, the engine's. What goes wrong in one request's own part, its sampler, its beams, its stop texts,
fails that request and no other.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import structlog
import torch

from gpu_service import metrics
from gpu_service.cpu_experts.client import ExpertServiceError
from gpu_service.engine import request_metrics
from gpu_service.engine.generation import Batch, Sequence
from gpu_service.engine.request import Best, Failed, Prompt, Request, Token
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.errors import NeverFitsError, NonFiniteError, QueueFullError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.threads import as_few_as_pay
from gpu_service.sampling import logprobs
from gpu_service.sampling.beam_search import BeamSearch
from gpu_service.sampling.logits import non_finite_rows, rows_of
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.outputs import FinishReason, TokenLogprobs
from gpu_service.sampling.sampler import Sampler, choose

_log = structlog.get_logger(__name__)
_PREFILL_SECONDS, _DECODE_SECONDS = (metrics.STEP_SECONDS.labels(phase) for phase in ("prefill", "decode"))


class Stepper:
    """Computes batches and tells requests what came of them."""

    def __init__(
        self, model: Model, scheduler: Scheduler, ids: RequestIds, on_failure: Callable[[Exception], None]
    ) -> None:
        """Starts without requests.

        Args:
            model: Computes logits.
            scheduler: Says what is computed next.
            ids: Told of requests that end.
            on_failure: Called with what made a whole step fail.
        """
        self._model = model
        self._scheduler = scheduler
        self._ids = ids
        self._on_failure = on_failure
        self._requests: dict[Request, None] = {}
        self._reason: Exception | None = None

    def add(self, request: Request) -> None:
        """Begins with a request, or fails it."""
        if self._reason:
            self._ids.end(request)
            request.emit(Failed(self._reason))
            return
        self._requests[request] = None
        with self._own_part(request):
            self._make_sequences(request)
        try:
            if request in self._requests:
                self._scheduler.add(request)
        except (QueueFullError, NeverFitsError) as error:
            self._fail(request, error)

    def cancel(self, request: Request, reason: FinishReason) -> None:
        """Ends a request, if it has not ended."""
        if request not in self._requests:
            return
        if request.search:
            with self._own_part(request):
                self._finish_search(request, request.search, reason)
            return
        ends = [each.finished(reason) for each in request.sequences if not each.is_finished]
        self._scheduler.remove(request)
        self._forget(request)
        for end in ends:
            request.emit(end)

    def fail_all(self, error: Exception) -> None:
        """Fails every request, and those that are added later."""
        self._reason = error
        for request in list(self._requests):
            self._forget(request)
            request.emit(Failed(error))

    def step(self) -> bool:
        """Computes one batch. Returns False where there was nothing to compute."""
        if (batch := self._scheduler.next_batch()) is None:
            return False
        try:
            logits = self._forward(batch)
        except Exception as error:
            self._fail_step(batch, error)
            return True
        self._scheduler.commit(batch)
        with as_few_as_pay(logits.numel()):
            self._advance(batch, logits)
        return True

    def _forward(self, batch: Batch) -> torch.Tensor:
        now = time.monotonic()
        for sequence in batch.sequences:
            sequence.request.started_at = sequence.request.started_at or now
        token_ids = torch.tensor(batch.token_ids)
        positions = torch.tensor(batch.start)[:, None] + torch.arange(token_ids.shape[1])
        logits = self._model.forward(token_ids, positions, first_row=batch.first_row, wants=batch.logits)
        (_PREFILL_SECONDS if batch.is_prompt else _DECODE_SECONDS).observe(time.monotonic() - now)
        return logits

    def _advance(self, batch: Batch, logits: torch.Tensor) -> None:
        """Gives every sequence what its row of [rows, vocab] logits says."""
        self._fail_spoiled(batch, logits)
        sequences = batch.sequences
        if batch.is_prompt:
            if batch.logits is Logits.ALL and not sequences[0].is_finished:
                self._tell_prompt(batch, logits)
            if not batch.ends_prompt:
                return
            sequences = tuple(sequences[0].request.sequences)
            logits = logits[-1:].repeat(len(sequences), 1)
        rows = [row for row, each in enumerate(sequences) if not each.is_finished]
        sampled = [row for row in rows if sequences[row].request.search is None]
        if sampled:
            self._sample([sequences[row] for row in sampled], rows_of(logits, sampled))
        if len(sampled) < len(rows):
            self._search_all(sequences, logits)

    def _sample(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        """Gives each sequence the token that its sampler chooses from its row of logits."""
        outcomes = choose(
            logits,
            [cast("Sampler", sequence.sampler) for sequence in sequences],  # none is a beam
            [sequence.output for sequence in sequences],
            num_top=[sequence.request.logprobs for sequence in sequences],
        )
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            self._deliver(sequence, outcome)

    def _search_all(self, sequences: tuple[Sequence, ...], logits: torch.Tensor) -> None:
        """Goes on with the beams among the sequences, request by request."""
        rows = {sequence: row for row, sequence in enumerate(sequences) if not sequence.is_finished}
        for request in dict.fromkeys(sequence.request for sequence in rows):
            if request.search is not None:
                self._search(request, request.search, logits, [rows[each] for each in request.sequences])

    def _fail_spoiled(self, batch: Batch, logits: torch.Tensor) -> None:
        """Fails the requests whose rows hold what is not a number; the rows of others are right."""
        spoiled = {*non_finite_rows(logits), *self._model.take_non_finite()}
        rows = [0] * bool(spoiled) if batch.is_prompt else sorted(spoiled)
        for request in dict.fromkeys(batch.sequences[row].request for row in rows):
            self._fail(request, NonFiniteError("the model computed what is not a finite number"), spoiled=True)

    def _tell_prompt(self, batch: Batch, logits: torch.Tensor) -> None:
        """Adds a chunk's [tokens, vocab] logits to what is known of the prompt, and tells it when that is all."""
        request, start = batch.sequences[0].request, batch.start[0]
        with self._own_part(request):
            following = request.prompt[start + 1 : start + 1 + len(logits)]
            if start == 0:
                request.prompt_entries.append(TokenLogprobs(request.prompt[0], None))
            num_top = [request.prompt_logprobs] * len(following)
            request.prompt_entries += logprobs.of_rows(logits[: len(following)], following, num_top)
            if batch.ends_prompt:
                request.emit(Prompt(request.prompt_entries))

    def _deliver(self, sequence: Sequence, outcome: TokenLogprobs | Exception) -> None:
        request = sequence.request
        if sequence.is_finished:
            return  # its request failed at another of its sequences
        with self._own_part(request):
            if isinstance(outcome, Exception):
                raise outcome
            sequence.output.append(outcome.token_id)
            stop = sequence.matcher.add(outcome.token_id) if sequence.matcher else None
            self._observe(sequence)
            request.emit(Token(sequence.index, outcome.token_id, None if request.logprobs is None else outcome))
            ended = request.ending.reason(outcome.token_id, len(sequence.output))
            reason = ended if stop is None else FinishReason.STOP
            if reason:
                self._finish(sequence, reason, stop)

    def _search(self, request: Request, search: BeamSearch, logits: torch.Tensor, rows: list[int]) -> None:
        with self._own_part(request):
            step = search.step(logits, rows)
            for fork in step.forks:
                source, target = request.sequences[fork.source], request.sequences[fork.target]
                self._scheduler.fork(source, target, fork.start)
                target.output[:] = source.output
            for sequence, token_id in zip(request.sequences, step.token_ids, strict=False):  # none at the end
                sequence.output.append(token_id)
            self._observe(request.sequences[0])
            if search.is_done:
                self._finish_search(request, search)
            elif request.beam and request.beam.stream_best:
                best = search.best()
                request.emit(Best(best.token_ids, best.score))

    def _observe(self, sequence: Sequence) -> None:
        """Counts a token, and when it came."""
        request_metrics.observe_token(sequence, now := time.monotonic())
        sequence.request.first_token_at = sequence.request.first_token_at or now
        sequence.last_token_at = now

    def _make_sequences(self, request: Request) -> None:
        request.sequences = [Sequence(request, index) for index in range(request.num_rows)]
        device, is_float32 = self._model.device, self._model.dtype is torch.float32
        chain = processors(request.sampling, request.ending, preceding_length=len(request.preceding), device=device)
        if request.beam:
            request.search = BeamSearch(
                request.beam,
                ending=request.ending,
                preceding=request.preceding,
                prompt_length=len(request.prompt),
                processors=chain,
            )
            return
        for each in request.sequences:
            each.sampler = Sampler(
                request.sampling,
                index=each.index,
                preceding=request.preceding,
                processors=chain,
                device=device,
                same_of_equals=is_float32,
            )
            each.matcher = request.stop.matcher() if request.stop else None

    def _finish(self, sequence: Sequence, reason: FinishReason, stop: str | None) -> None:
        request = sequence.request
        self._scheduler.finish(sequence)
        if all(each.is_finished for each in request.sequences) and self._forget(request):
            reason, stop = FinishReason.CANCELLED, None
        request.emit(sequence.finished(reason, stop))

    def _finish_search(self, request: Request, search: BeamSearch, reason: FinishReason | None = None) -> None:
        """Ends a request with its best beams, for the given reason where they did not end by themselves."""
        results = search.results()
        self._scheduler.remove(request)
        if self._forget(request):
            reason = FinishReason.CANCELLED
        for index, beam in enumerate(results):
            request.emit(request.finished_beam(index, beam.token_ids, beam.score, reason or beam.reason))

    def _forget(self, request: Request) -> bool:
        """Returns whether it was aborted, and so must not end in any other way."""
        self._requests.pop(request, None)
        return not self._ids.end(request)

    @contextmanager
    def _own_part(self, request: Request) -> Iterator[None]:
        """What is done for one request alone, and fails it alone; after a fault on the device, though, all fails."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            _log.error("request failed", request=request.number, error=str(error), exc_info=error)
            self._fail(request, error)

    def _fail(self, request: Request, error: Exception, spoiled: bool = False) -> None:
        if request not in self._requests:
            return
        self._scheduler.remove(request, spoiled)
        self._forget(request)
        request.emit(Failed(error))

    def _fail_step(self, batch: Batch, error: Exception) -> None:
        expected = isinstance(error, ExpertServiceError)  # the message says it all
        _log.error("step failed", requests=len(batch.requests), error=str(error), exc_info=None if expected else error)
        self._on_failure(error)
        for request in batch.requests:
            self._fail(request, error, spoiled=True)
        if isinstance(error, torch.AcceleratorError):
            raise error  # see _own_part
