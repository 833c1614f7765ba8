"""What the tokens of one generation may be, by a grammar: masks, and tokens of which there is no choice.

Where the grammar leaves no choice of text, the tokens are those that the tokenizer makes of that text. They are neither
drawn nor computed one by one.
"""

from collections import deque

import numpy as np
import torch
from llguidance import LLMatcher

from gpu_service.errors import ConstraintError
from gpu_service.sampling.outputs import Ending


class Constraint:
    """The state of one generation."""

    def __init__(self, grammar: LLMatcher, *, ending: Ending, eos_ids: frozenset[int], vocab_size: int) -> None:
        """At the beginning of the output.

        Args:
            grammar: The grammar at its beginning; it stays there.
            ending: What ends the generation.
            eos_ids: The model's end tokens, also if they are ignored.
            vocab_size: The number of logits.

        Raises:
            ConstraintError: The grammar is too complex.
        """
        self._matcher = grammar.deep_copy()
        self._ignored_ids = sorted(eos_ids - ending.eos_ids)
        self._stop_ids = sorted(ending.stop_ids)
        self._end_ids = sorted(eos_ids | ending.stop_ids)
        self._vocab_size = vocab_size
        self._forced = deque[int]()
        self._force()

    @property
    def forced(self) -> int | None:
        """The next token, if there is no choice."""
        return self._forced[0] if self._forced else None

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow.

        Raises:
            ConstraintError: The grammar is too complex.
        """
        if self._forced or not self._matcher.is_stopped():
            return False
        self._check()  # it also stops at an error
        return True

    def add(self, token_id: int) -> None:
        """The generation has one token more, which does not end it.

        Raises:
            ConstraintError: The grammar does not allow it, or is too complex.
        """
        if self._forced:
            self._forced.popleft()
            return
        self._matcher.consume_token(token_id)
        self._force()

    def allowed(self) -> tuple[torch.Tensor, bool]:
        """The tokens that may come next.

        Returns:
            [vocab] bool on the CPU, and whether only the end may come, so that min_tokens must not rule it out.

        Raises:
            ConstraintError: No token may come, or the grammar is too complex.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        self._check()
        mask = torch.zeros(self._vocab_size, dtype=torch.bool)
        bits = bits[: self._vocab_size]
        mask[: len(bits)] = torch.from_numpy(bits).bool()
        mask[self._ignored_ids] = False
        if self._matcher.is_accepting():
            mask[self._stop_ids] = True
        num_allowed = int(mask.sum())
        if not num_allowed:
            raise ConstraintError("the constraint allows no further token")
        return mask, num_allowed == int(mask[self._end_ids].sum())

    def _force(self) -> None:
        self._check()
        tokens = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
            self._check()
            self._forced.extend(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the constraint cannot be followed: {self._matcher.get_error().splitlines()[0]}")
