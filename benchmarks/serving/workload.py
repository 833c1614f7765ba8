"""The models that are served, and their prompts."""

import itertools
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import mixtral
from tests.support.tampering import edit_config

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_TOKENS = range(3, 250)
_chance = random.Random(0)
_numbers = itertools.cycle(_TOKENS)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, and how much a run measures with it."""

    name: str
    directory: Path
    max_context: int
    long_prompt_tokens: int
    prefill_chunk: int = 512
    prompt_tokens: int = 32
    steps: int = 8
    """Of each case and round."""
    tokens: int = 32
    """Of each stream."""


def models(directory: Path, tiny: bool, wanted: Collection[str] | None = None) -> list[Model]:
    """The models to measure. Missing checkpoints are written.

    Args:
        directory: Where checkpoints are written.
        tiny: Whether to use only a small model, to try the benchmark out.
        wanted: Names of models; None: all.

    Raises:
        SystemExit: A name is unknown.
    """
    known: dict[str, Callable[[], Model]] = {
        "demo": lambda: Model("demo", _DEMO, max_context=2048, long_prompt_tokens=1900, tokens=128),
        mixtral.NAME: lambda: _written(directory, mixtral.NAME, 1, **mixtral.SHAPE),
    }
    if tiny:
        shape = {"hidden": 64, "inner": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 320}
        known = {"tiny": lambda: _written(directory, "tiny", 4, **shape)}
    if unknown := set(wanted or ()) - set(known):
        raise SystemExit(f"--models: {sorted(unknown)[0]} is unknown; choose from {', '.join(known)}")
    return [make() for name, make in known.items() if wanted is None or name in wanted]


def prompts(num_tokens: int, count: int) -> list[list[int]]:
    """`count` prompts with token ids that every vocabulary has. No two begin alike, so that none shares a prefix."""
    return [[next(_numbers), *_chance.choices(_TOKENS, k=num_tokens - 1)] for _ in range(count)]


def _written(directory: Path, name: str, divisor: int, **shape: int) -> Model:
    """Two layers with random weights."""
    path = mixtral.write(directory / name, **shape)
    edit_config(path, max_position_embeddings=4096)  # so that a long prompt fits
    return Model(
        name,
        path,
        max_context=4096 // divisor,
        long_prompt_tokens=2048 // divisor,
        prefill_chunk=512 // divisor,
        steps=8 // divisor,
        tokens=32 * divisor,  # so that all streams of a fast model, too, decode together for a while
    )
