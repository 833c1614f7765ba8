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
    return [read(row, count) for row, count in zip(columns(logits, token_ids, num_top).tolist(), num_top, strict=True)]


def columns(
    logits: torch.Tensor, token_ids: torch.Tensor | Sequence[int], num_top: Sequence[int | None]
) -> torch.Tensor:
    """What `of_rows` brings to the host: [rows, columns] float64 on the device, which `read` understands."""
    ids = torch.as_tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    wanted = [count for count in num_top if count is not None]
    if not wanted:
        return ids.double()
    logprobs = torch.log_softmax(logits, dim=-1)
    top = logprobs.topk(min(max(wanted), logits.shape[-1]), dim=-1)
    # float64 represents both ids and float32 exactly, so that one transfer brings everything
    return torch.cat([ids.double(), logprobs.gather(1, ids).double(), top.indices.double(), top.values.double()], 1)


def read(row: list[float], num_top: int | None) -> TokenLogprobs:
    """Reads a row of `columns`: [token id, its log probability, ids of the likeliest, their log probabilities].

    All but the token id are missing if no row wants log probabilities.
    """
    token_id = int(row[0])
    if num_top is None:
        return TokenLogprobs(token_id, None)
    width = len(row) // 2 - 1
    ids, values = row[2 : 2 + width][:num_top], row[2 + width :][:num_top]
    return TokenLogprobs(token_id, row[1], tuple((int(each), value) for each, value in zip(ids, values, strict=True)))
