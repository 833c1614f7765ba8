"""Log probabilities that requests ask for: of the model's own distribution, before anything changes the logits."""

from collections.abc import Sequence

import torch

from gpu_service.sampling.outputs import TokenLogprobs


def of_rows(
    logits: torch.Tensor, token_ids: torch.Tensor | Sequence[int], num_top: Sequence[int | None]
) -> list[TokenLogprobs]:
    """The log probabilities of one token in each row and of the likeliest tokens, with one wait for the device.

    Args:
        logits: [rows, vocab] float32, as the model computed them.
        token_ids: [rows], the token of each row; a tensor may be on the device.
        num_top: How many of the likeliest tokens each row wants; None: no log probability at all.
    """
    ids = torch.as_tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    wanted = [count for count in num_top if count is not None]
    if not wanted:
        return [TokenLogprobs(token_id, None) for token_id in ids[:, 0].tolist()]
    logprobs = torch.log_softmax(logits, dim=-1)
    width = min(max(wanted), logits.shape[-1])
    top = logprobs.topk(width, dim=-1)
    # float64 represents both ids and float32 exactly, so that one transfer brings everything
    columns = torch.cat([ids.double(), logprobs.gather(1, ids).double(), top.indices.double(), top.values.double()], 1)
    return [_of_row(row, count, width) for row, count in zip(columns.tolist(), num_top, strict=True)]


def _of_row(row: list[float], num_top: int | None, width: int) -> TokenLogprobs:
    """Reads [token id, its log probability, `width` ids of the likeliest, `width` log probabilities]."""
    token_id = int(row[0])
    if num_top is None:
        return TokenLogprobs(token_id, None)
    ids, values = row[2 : 2 + width][:num_top], row[2 + width :][:num_top]
    return TokenLogprobs(token_id, row[1], tuple((int(each), value) for each, value in zip(ids, values, strict=True)))
