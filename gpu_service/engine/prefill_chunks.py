"""How many tokens a step that computes pieces of prompts has. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunks:
    """The most tokens of a step that computes pieces of prompts, tokens of generations that decode included."""

    with_others: int
    """While there are other requests."""
    alone: int
    """While there is no other request. Fewer than `with_others` count as `with_others`."""
    logprobs: int
    """If the logits of all of them are needed. More than `with_others` count as `with_others`."""

    @classmethod
    def uniform(cls, num_tokens: int) -> "PrefillChunks":
        """The same in all cases."""
        return cls(with_others=num_tokens, alone=num_tokens, logprobs=num_tokens)

    def for_storage(self, is_divisible: bool, max_length: int) -> "PrefillChunks":
        """The chunks that a step really computes.

        Args:
            is_divisible: Whether a prompt may be computed in several steps; otherwise it is one chunk.
            max_length: The longest prompt.
        """
        with_others = self.with_others if is_divisible else max_length
        return PrefillChunks(
            with_others=with_others, alone=max(with_others, self.alone), logprobs=min(with_others, self.logprobs)
        )
