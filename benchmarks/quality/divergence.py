"""How far one model's distributions of the next token are from another's, over many tokens."""

import math

import torch


class Divergence:
    """Sums over sequences."""

    def __init__(self) -> None:
        """Of no token yet."""
        self.num_tokens = 0
        self._num_next = 0
        self._divergence = 0.0
        self._same_top = 0
        self._loss = 0.0

    def add(self, token_ids: torch.Tensor, reference: torch.Tensor, other: torch.Tensor) -> None:
        """Compares two models on a sequence.

        Args:
            token_ids: [tokens] int64.
            reference: Log probabilities of the next token after each of them, [tokens, vocabulary] float32.
            other: The same of the other model.
        """
        self.num_tokens += len(token_ids)
        each = (reference.exp() * (reference - other)).sum(-1, dtype=torch.float64)
        self._divergence += float(each.clamp(min=0).sum())  # below 0 by rounding only
        self._same_top += int((reference.argmax(-1) == other.argmax(-1)).sum())
        following = token_ids[1:, None]
        gained = reference[:-1].gather(1, following) - other[:-1].gather(1, following)
        self._loss += float(gained.sum(dtype=torch.float64))
        self._num_next += len(following)

    @property
    def kl_divergence(self) -> float:
        """The mean of KL(reference || other) over all positions, in nats."""
        return self._divergence / self.num_tokens

    @property
    def perplexity_ratio(self) -> float:
        """The other's perplexity over the reference's: above 1 if the other predicts the text less well."""
        return math.exp(self._loss / self._num_next)

    @property
    def same_top_token(self) -> float:
        """The share of positions after which both find the same token the most probable."""
        return self._same_top / self.num_tokens
