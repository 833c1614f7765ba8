"""Makes the masks of a batch: which keys each query sees, for each type of layer, in the model's form."""

from collections.abc import Callable
from typing import Any

import torch

_Mask = Callable[[torch.Tensor, int], torch.Tensor]


class AttentionMasks:
    """Makes the masks of a batch."""

    def __init__(self, config: Any, dtype: torch.dtype, is_added: bool) -> None:
        """Reads what the layers see.

        Args:
            config: Of the decoder.
            dtype: Of the attention's scores.
            is_added: Whether the attention adds its mask to the scores; if not, it takes booleans.
        """
        self._dtype = dtype
        self._is_added = is_added
        self._kinds = _kinds(config)
        names = ("sliding_window", "attention_chunk_size")
        self._spans = [span for name in names if isinstance(span := getattr(config, name, None), int) and span > 0]

    def of(self, positions: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """The mask [sequences, 1, tokens, length]; a dictionary of them if the model has several types of layers.

        Args:
            positions: [sequences, tokens] int64.
            length: Positions that the attention gets.
        """
        masks = {layer_type: self._formed(mask(positions, length)) for layer_type, mask in self._kinds.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    @property
    def spans(self) -> list[int]:
        """The windows and chunks of the layers, in positions."""
        return self._spans

    def visible_keys(self, positions: torch.Tensor, layer_type: str | None) -> torch.Tensor:
        """[queries] -> [queries, the largest position + 1] bool, True if the query sees the key.

        The type of the layer does not matter if all are alike.
        """
        mask = next(iter(self._kinds.values())) if len(self._kinds) == 1 else self._kinds[str(layer_type)]
        return mask(positions[None], int(positions.max()) + 1)[0, 0]

    def _formed(self, mask: torch.Tensor) -> torch.Tensor:
        if not self._is_added:
            return mask
        added = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device)
        return added.masked_fill_(~mask, torch.finfo(self._dtype).min)


def _kinds(config: Any) -> dict[str, _Mask]:
    """The mask of each type of attention layer, by the type's name."""
    window = getattr(config, "sliding_window", None) or None
    types = set(getattr(config, "layer_types", None) or [])
    if not types:
        return {"attention": _sliding(window)}
    return {layer_type: _of_type(layer_type, config, window) for layer_type in sorted(types)}


def _of_type(layer_type: str, config: Any, window: int | None) -> _Mask:
    if layer_type == "chunked_attention":
        return _chunked(config.attention_chunk_size)
    return _sliding(window if "sliding" in layer_type else None)


def _sliding(window: int | None) -> _Mask:
    return lambda positions, length: attention_mask(positions, length, window)


def _chunked(chunk: int) -> _Mask:
    """A query sees itself and what is before it in its own chunk of positions."""

    def mask(positions: torch.Tensor, length: int) -> torch.Tensor:
        keys = torch.arange(length, device=positions.device)
        return attention_mask(positions, length) & (keys // chunk == positions[:, None, :, None] // chunk)

    return mask


def attention_mask(positions: torch.Tensor, length: int, window: int | None = None) -> torch.Tensor:
    """Which keys each query sees.

    Args:
        positions: [sequences, tokens] int64.
        length: Positions that the attention gets.
        window: A query sees itself and the window - 1 positions before it; None: all positions before it.

    Returns:
        [sequences, 1, tokens, length] bool, True if the query sees the key.
    """
    keys = torch.arange(length, device=positions.device)
    queries = positions[:, None, :, None]
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
