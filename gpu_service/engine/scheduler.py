"""Says what the engine computes next. Knows requests and rows of the cache, no tensors; torch is not imported here.

A request is admitted when all that it may come to need fits, and waits until then; within one priority nobody
overtakes. Prompts are computed in chunks, and between two of them everyone else decodes one token. The chunks of a
request that is alone are larger: each chunk reads or copies nearly all experts anew, and nobody waits for its end.
"""

import bisect
from collections.abc import Sequence

from gpu_service.engine import generation as words
from gpu_service.engine.generation import Batch
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.kv_rows import RowStorage, RowTable
from gpu_service.engine.request import Request
from gpu_service.errors import NeverFitsError, QueueFullError
from gpu_service.model_runner.forward_input import Logits


class Scheduler:
    """Requests by priority and arrival: waiting, admitted with their prompts under way, decoding."""

    def __init__(
        self,
        storage: RowStorage,
        budget: KvBudget,
        max_waiting: int,
        prefill_chunk: int,
        logprobs_chunk: int | None = None,
        alone_chunk: int | None = None,
    ) -> None:
        """Starts with nothing to do.

        Args:
            storage: What holds keys and values.
            budget: How many it may hold.
            max_waiting: The most requests that wait.
            prefill_chunk: The most prompt tokens computed between two decode steps.
            logprobs_chunk: The same where the logits of all of them are needed; None: no fewer.
            alone_chunk: The same while there is no other request; None, or where it is less: no more.
        """
        self.budget = budget
        self._rows = RowTable(storage, budget)
        self._max_waiting = max_waiting
        # what cannot be divided may not be gone on with either
        self._prefill_chunk = prefill_chunk if storage.is_divisible else budget.max_length
        self._alone_chunk = max(self._prefill_chunk, alone_chunk or 0)
        self._logprobs_chunk = min(self._prefill_chunk, logprobs_chunk or prefill_chunk)
        self._divides_prompts = storage.is_divisible
        self._waiting: list[Request] = []
        self._admitted: dict[Request, None] = {}
        self._prompts: list[Request] = []  # those of the admitted whose prompts are not computed yet
        self._prefilled_last = False
        self._served_oldest = False

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are admitted."""
        return len(self._admitted)

    @property
    def used_slots(self) -> int:
        """Rows that admitted requests need, those included that they do not fill yet. For any thread."""
        admitted = tuple(self._admitted)  # in one go, since the engine's thread may change it meanwhile
        return sum(not sequence.is_finished for request in admitted for sequence in request.sequences)

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of keys and values that admitted requests may come to hold. For any thread."""
        return self.used_slots * (self._longest() * self.budget.token_bytes + self.budget.row_bytes)

    def check(self, request: Request) -> None:
        """Makes sure that a request can be run where nothing else is.

        Raises:
            NeverFitsError: It is too large for the budget, or for what is computed at once.
        """
        self.budget.check(request)
        at_once = len(request.prompt) > self._logprobs_chunk and not self._divides_prompts
        if at_once and request.prompt_logprobs is not None:
            raise NeverFitsError(
                "prompt_logprobs",
                f"this model computes a prompt at once, and the logits of at most {self._logprobs_chunk} tokens are "
                f"held at one time; the prompt has {len(request.prompt)}",
            )

    def add(self, request: Request) -> None:
        """Admits a request, or lets it wait.

        Raises:
            QueueFullError: Too many wait.
            NeverFitsError: It is too large for the budget.
        """
        self.check(request)
        bisect.insort(self._waiting, request, key=lambda waiting: (-waiting.priority, waiting.number))
        self._admit()
        if request not in self._admitted and len(self._waiting) > self._max_waiting:
            self._waiting.remove(request)
            raise QueueFullError(f"{len(self._waiting)} requests wait already")

    def next_batch(self) -> Batch | None:
        """What to compute next; None when there is nothing."""
        decoding = self._rows.decoding()
        if self._prompts and not (self._prefilled_last and decoding):
            self._prefilled_last = True
            return self._prompt_batch()
        self._prefilled_last = False
        return self._decode_batch(decoding) if decoding else None

    def commit(self, batch: Batch) -> None:
        """Records that a batch was computed: its tokens' keys and values are in the cache."""
        for sequence, token_ids in zip(batch.sequences, batch.token_ids, strict=True):
            sequence.num_computed += len(token_ids)
        if batch.ends_prompt:
            request = batch.sequences[0].request
            self._prompts.remove(request)
            self._rows.join(request.sequences)

    def fork(self, source: words.Sequence, target: words.Sequence, start: int) -> None:
        """Makes one beam's row hold what another's does, from a position on."""
        self._rows.fork(source, target, start)

    def finish(self, sequence: words.Sequence, spoiled: bool = False) -> None:
        """Forgets a sequence that was admitted; its row is free.

        Args:
            sequence: Which.
            spoiled: Whether its row may hold what is not a number.
        """
        request = sequence.request
        sequence.is_finished = True
        unfinished_prompt = request in self._prompts
        # nobody has looked at what an unfinished prompt has left
        stop = sequence.num_computed + self._alone_chunk if spoiled or unfinished_prompt else 0
        self._rows.release(sequence, clear_stop=stop)
        if all(other.is_finished for other in request.sequences):
            self._admitted.pop(request)
            if unfinished_prompt:
                self._prompts.remove(request)
        self._admit()

    def remove(self, request: Request, spoiled: bool = False) -> None:
        """Forgets a request, wherever it is."""
        if request in self._admitted:
            for sequence in request.sequences:
                if not sequence.is_finished:
                    self.finish(sequence, spoiled)
        elif request in self._waiting:
            self._waiting.remove(request)
            self._admit()

    def _admit(self) -> None:
        """Admits those that have waited longest, as long as they fit."""
        while self._waiting:
            request = self._waiting[0]
            rows, length = self.used_slots + request.num_rows, max(self._longest(), request.max_length)
            if self.budget.shape(rows, length) is None:
                return  # nor may a smaller one that came later: this one would never be next
            self._waiting.pop(0)
            self._rows.reserve(rows, length)
            self._admitted[request] = None
            self._prompts.append(request)

    def _longest(self) -> int:
        return max((request.max_length for request in tuple(self._admitted)), default=0)

    def _prompt_batch(self) -> Batch:
        request = self._next_prompt()
        sequence = request.sequences[0]
        if sequence.row < 0:
            self._rows.begin(sequence, may_share=request.prompt_logprobs is None)
            request.cached_prompt_tokens = sequence.num_computed
        wants_all = request.prompt_logprobs is not None
        start = sequence.num_computed
        end = min(start + (self._logprobs_chunk if wants_all else self._chunk_now()), len(request.prompt))
        is_last = end == len(request.prompt)
        return Batch(
            sequences=(sequence,),
            first_row=sequence.row,
            token_ids=[request.prompt[start:end]],
            start=[start],
            logits=Logits.ALL if wants_all else Logits.LAST if is_last else Logits.NONE,
            ends_prompt=is_last,
            is_prompt=True,
        )

    def _chunk_now(self) -> int:
        is_alone = len(self._admitted) == 1 and not self._waiting
        return self._alone_chunk if is_alone else self._prefill_chunk

    def _next_prompt(self) -> Request:
        """By turns the oldest and the one with the least left: a short prompt need not wait for a long one's end."""
        oldest = self._prompts[0]
        shortest = min(self._prompts, key=lambda request: len(request.prompt) - request.sequences[0].num_computed)
        request = shortest if self._served_oldest else oldest
        self._served_oldest = request is oldest
        return request

    def _decode_batch(self, decoding: Sequence[words.Sequence]) -> Batch:
        return Batch(
            sequences=tuple(decoding),
            first_row=0,
            token_ids=[[sequence.output[-1]] for sequence in decoding],
            start=[sequence.num_computed for sequence in decoding],
            logits=Logits.LAST,
        )
