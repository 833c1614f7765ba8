"""transformers' top-p on the CPU, where sorting takes nearly all of its time: values are sorted, and no token ids.

The sum of sorted probabilities says how many tokens are kept, and so the greatest logit of those that are not. Which
tokens these are follows from that logit alone, unless one that is kept has it, too: then, and on other devices,
transformers' own warper decides. The result is the same in every bit.
"""

from typing import cast

import numpy as np
import torch
from torch.nn import functional
from transformers import TopPLogitsWarper


class TopP(TopPLogitsWarper):
    """TopPLogitsWarper, faster: numpy sorts with vector instructions, and torch cuts with them."""

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab], with -inf where a token is not among the likeliest."""
        if scores.device.type != "cpu" or scores.dtype is not torch.float32:
            return self._transformers(input_ids, scores)
        ordered = torch.from_numpy(np.sort(scores.numpy(), axis=-1))
        # as transformers computes it, on the same values in the same order
        num_removed = (ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p).sum(dim=-1, keepdim=True)
        num_removed.clamp_(max=scores.shape[-1] - self.min_tokens_to_keep)
        borders = ordered.gather(1, torch.cat([num_removed - 1, num_removed], dim=1).clamp_(min=0)).tolist()
        warped = torch.empty_like(scores)
        for row, (count, (removed, kept)) in enumerate(zip(num_removed[:, 0].tolist(), borders, strict=True)):
            if count == 0:
                warped[row] = scores[row]
            elif removed == kept:
                warped[row] = self._transformers(input_ids, scores[row : row + 1])[0]
            else:
                warped[row] = functional.threshold(scores[row], removed, self.filter_value)
        return cast("torch.FloatTensor", warped)

    def _transformers(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        return cast("torch.FloatTensor", super().__call__(cast("torch.LongTensor", input_ids), scores))
