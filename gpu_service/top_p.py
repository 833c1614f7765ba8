"""transformers' top-p on the CPU, where sorting takes nearly all of its time: values are sorted, and no token ids.

The sum of sorted probabilities says how many tokens are kept, and so the least logit among those kept. Of several that
have just that logit, transformers keeps those that its sort, which is not a stable one, happens to put last. In float32
it is asked itself, so that the result is the same in every bit; logits hardly ever are equal there. In bfloat16 they
often are, and the last ones by id are kept: see decision 24. Other devices than the CPU have transformers' own.
"""

from typing import cast

import numpy as np
import torch
from transformers import TopPLogitsWarper


class TopP(TopPLogitsWarper):
    """TopPLogitsWarper, faster: numpy sorts with vector instructions, and torch cuts with them."""

    def __init__(self, top_p: float, same_of_equals: bool = True) -> None:
        """Prepares nothing.

        Args:
            top_p: The least probability of all that are kept together.
            same_of_equals: Whether of equal logits those are kept that transformers keeps, which takes its time.
        """
        super().__init__(top_p)
        self._same_of_equals = same_of_equals

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab], with -inf where a token is not among the likeliest."""
        if scores.device.type != "cpu" or scores.dtype is not torch.float32:
            return self._transformers(input_ids, scores)
        values = scores.numpy()
        ordered = torch.from_numpy(np.sort(values, axis=-1))
        # as transformers computes it, on the same values in the same order; sums of what is not negative only grow
        sums = ordered.softmax(dim=-1).cumsum(dim=-1)
        num_removed = torch.searchsorted(sums, sums.new_full((len(sums), 1), 1 - self.top_p), right=True)
        num_removed.clamp_(max=scores.shape[-1] - self.min_tokens_to_keep)
        least_kept = ordered.gather(1, num_removed)
        num_less = torch.searchsorted(ordered, least_kept)
        greatest_less = ordered.gather(1, (num_less - 1).clamp_(min=0))
        borders = zip(
            *(each[:, 0].tolist() for each in (num_removed, num_less, least_kept, greatest_less)), strict=True
        )
        warped = scores.clone()
        for row, (its_scores, (removed, less, least, greatest)) in enumerate(
            zip(warped.unbind(), borders, strict=True)
        ):
            if removed > less and self._same_of_equals:
                its_scores[:] = self._transformers(input_ids, scores[row : row + 1])[0]
                continue
            if less:
                torch.threshold_(its_scores, greatest, self.filter_value)
            if removed > less:
                its_scores.numpy()[np.flatnonzero(values[row] == np.float32(least))[: removed - less]] = (
                    self.filter_value
                )
        return cast("torch.FloatTensor", warped)

    def _transformers(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        return cast("torch.FloatTensor", super().__call__(cast("torch.LongTensor", input_ids), scores))
