"""The popularity file: how often each expert was chosen, counted once and read at start-up.

    {"format": 1, "model_type": "mixtral", "checkpoint_fingerprint": "<hex>", "tokens": 4711,
     "layers": [{"decoder_layer": 0, "counts": [812, 96, ...]}, ...]}

A token at top-2 counts 2 in each layer. `python -m gpu_service.profile` writes it; it belongs to one checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gpu_service.atomic_write import JsonFile, known_format, read_json, write_json
from gpu_service.errors import PopularityError

if TYPE_CHECKING:
    from fiddler.checkpoint import Checkpoint  # it imports torch

FORMAT = 1


class _Layer(JsonFile):
    decoder_layer: int
    counts: list[Annotated[float, Field(ge=0)]]


class _Content(JsonFile):
    format: Annotated[int, known_format(FORMAT)]
    model_type: str
    checkpoint_fingerprint: str
    tokens: int = Field(ge=1)
    layers: list[_Layer]


@dataclass(frozen=True, slots=True)
class Popularity:
    """How often each expert was chosen while a number of tokens were computed."""

    tokens: int
    counts: tuple[tuple[float, ...], ...]
    """By MoE layer and expert."""

    @classmethod
    def of_counts(cls, counts: Sequence[Sequence[int]], experts_per_token: int) -> "Popularity | None":
        """The popularity that a service has counted, [layers][experts]; None if no token was computed."""
        tokens = max(sum(layer) for layer in counts) // max(1, experts_per_token)
        return cls(tokens, tuple(tuple(layer) for layer in counts)) if tokens else None

    def save(self, path: Path, checkpoint: "Checkpoint") -> None:
        """Writes the file completely or not at all.

        Raises:
            OSError: It cannot be written.
        """
        content = {
            "format": FORMAT,
            "model_type": checkpoint.model_type,
            "checkpoint_fingerprint": checkpoint.fingerprint,
            "tokens": self.tokens,
            "layers": [
                {"decoder_layer": layer.decoder_layer, "counts": counts}
                for layer, counts in zip(checkpoint.layers, self.counts, strict=True)
            ],
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: Path, checkpoint: "Checkpoint") -> "Popularity":
        """Reads the file and compares it with the checkpoint.

        Raises:
            PopularityError: There is no such file, it is not a popularity file, or it is another checkpoint's.
        """
        try:
            content = read_json(path, _Content, PopularityError)
            if problem := _difference(content, checkpoint):
                raise PopularityError(f"{path}: {problem}")
        except PopularityError as error:
            raise PopularityError(f"--popularity: {error}") from None
        return cls(content.tokens, tuple(tuple(layer.counts) for layer in content.layers))


def _difference(content: _Content, checkpoint: "Checkpoint") -> str | None:
    """The first field that is not this checkpoint's; None if all are."""
    if content.model_type != checkpoint.model_type:
        return f"model_type: is {content.model_type!r}, and the checkpoint's is {checkpoint.model_type!r}"
    if content.checkpoint_fingerprint != checkpoint.fingerprint:
        return "checkpoint_fingerprint: is another checkpoint's; python -m gpu_service.profile makes a file"
    if len(content.layers) != len(checkpoint.layers):
        return f"layers: must be {len(checkpoint.layers)} as in the checkpoint, got {len(content.layers)}"
    for i, (layer, expected) in enumerate(zip(content.layers, checkpoint.layers, strict=True)):
        if layer.decoder_layer != expected.decoder_layer:
            return f"layers[{i}].decoder_layer: must be {expected.decoder_layer}, got {layer.decoder_layer}"
        if len(layer.counts) != expected.num_experts:
            return f"layers[{i}].counts: must be of {expected.num_experts} experts, got {len(layer.counts)}"
    return None
