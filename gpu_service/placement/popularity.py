"""The popularity file: how often each expert was chosen, counted once and read by placement at start. No torch here.

    {"format": 1, "model_type": "mixtral", "checkpoint_fingerprint": "<hex>", "tokens": 4711,
     "layers": [{"decoder_layer": 0, "counts": [812, 96, ...]}, ...]}

A token at top-2 counts 2 in each layer. `python -m gpu_service.profile` writes it; it belongs to one checkpoint.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpu_service.atomic_write import write_whole
from gpu_service.errors import PopularityError

FORMAT = 1


class Layer(Protocol):
    """What is asked of a checkpoint's MoE layer."""

    @property
    def decoder_layer(self) -> int:
        """The layer's number among the decoder's."""
        ...

    @property
    def num_experts(self) -> int:
        """Experts in it."""
        ...


class Checkpoint(Protocol):
    """What is asked of a checkpoint: which one it is, and its MoE layers."""

    @property
    def model_type(self) -> str:
        """The family, as config.json names it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Says whether two processes look at the same weights."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """MoE layers, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Popularity:
    """How often each expert was chosen while a number of tokens were computed."""

    tokens: int
    counts: tuple[tuple[float, ...], ...]
    """By MoE layer and expert."""

    def save(self, path: Path, checkpoint: Checkpoint) -> None:
        """Writes the file whole or not at all: who reads it meanwhile sees the old one.

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
        write_whole(path, json.dumps(content, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path, checkpoint: Checkpoint) -> "Popularity":
        """Reads the file and holds it against the checkpoint.

        Raises:
            PopularityError: There is no such file, it is not a popularity file, or it is another model's.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PopularityError(f"--popularity: {path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or brackets without end
            raise PopularityError(f"--popularity: {path}: is not JSON: {error}") from None
        try:
            return _parse(content, checkpoint)
        except PopularityError as error:
            raise PopularityError(f"--popularity: {path}: {error}") from None


def _parse(content: Any, checkpoint: Checkpoint) -> Popularity:
    """Raises PopularityErrors that name the field."""
    if not isinstance(content, dict):
        raise PopularityError("must hold a JSON object")
    if (number := _field(content, "format")) != FORMAT:
        raise PopularityError(f"format: must be {FORMAT}, got {number!r}")
    if (model_type := _field(content, "model_type")) != checkpoint.model_type:
        raise PopularityError(f"model_type: is {model_type!r}, and the checkpoint's is {checkpoint.model_type!r}")
    if _field(content, "checkpoint_fingerprint") != checkpoint.fingerprint:
        raise PopularityError(
            "checkpoint_fingerprint: is another checkpoint's; python -m gpu_service.profile makes a file"
        )
    tokens = _field(content, "tokens")
    if type(tokens) is not int or tokens < 1:
        raise PopularityError(f"tokens: must be a whole number of at least 1, got {tokens!r}")
    layers = _field(content, "layers")
    if not isinstance(layers, list) or len(layers) != len(checkpoint.layers):
        found = len(layers) if isinstance(layers, list) else repr(layers)
        raise PopularityError(f"layers: must be {len(checkpoint.layers)} as in the checkpoint, got {found}")
    return Popularity(
        tokens, tuple(_counts(f"layers[{i}]", layer, checkpoint.layers[i]) for i, layer in enumerate(layers))
    )


def _counts(field: str, layer: Any, expected: Layer) -> tuple[float, ...]:
    if not isinstance(layer, dict):
        raise PopularityError(f"{field}: must be an object, got {layer!r}")
    if (number := _field(layer, "decoder_layer", field)) != expected.decoder_layer:
        raise PopularityError(f"{field}.decoder_layer: must be {expected.decoder_layer}, got {number!r}")
    counts = _field(layer, "counts", field)
    if not isinstance(counts, list) or len(counts) != expected.num_experts:
        found = len(counts) if isinstance(counts, list) else repr(counts)
        raise PopularityError(f"{field}.counts: must be of {expected.num_experts} experts, got {found}")
    for expert, count in enumerate(counts):
        if type(count) not in (int, float) or not 0 <= count <= sys.float_info.max:  # nor is a NaN
            raise PopularityError(f"{field}.counts[{expert}]: must be a number of at least 0, got {count!r}")
    return tuple(counts)


def _field(content: dict[str, Any], name: str, within: str = "") -> Any:
    if name not in content:
        raise PopularityError(f"{within}{'.' if within else ''}{name}: is missing")
    return content[name]
