"""The models that are served, and the prompts that they are given."""

import itertools
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.support import checkpoints
from tests.support.large_checkpoint import write_mixtral
from tests.support.tampering import edit_config

_DEMO = Path(__file__).parents[2] / "models" / "demo"
_TOKENS = range(3, 250)
_chance = random.Random(0)
_numbers = itertools.cycle(_TOKENS)


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, and how much of it a run measures."""

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
    """Those that are measured; what is not there is written to the directory.

    Args:
        directory: Where checkpoints are written.
        tiny: Whether there is only a small one, to try out the benchmark.
        wanted: Names; None: all.

    Raises:
        SystemExit: There is none of that name.
    """
    shape = {"hidden": 4096, "inner": 14336, "num_heads": 32, "vocab_size": 32000}
    known: dict[str, Callable[[], Model]] = {
        "demo": lambda: Model("demo", _DEMO, max_context=2048, long_prompt_tokens=1900, tokens=128),
        "mixtral_2_layers": lambda: _written(directory, "mixtral_2_layers", 1, **shape),
    }
    if tiny:
        known = {"tiny": lambda: _written(directory, "tiny", 4, hidden=64, inner=128, num_heads=4, vocab_size=320)}
    if unknown := set(wanted or ()) - set(known):
        raise SystemExit(f"--models: there is no {sorted(unknown)[0]}; there are {', '.join(known)}")
    return [make() for name, make in known.items() if wanted is None or name in wanted]


def prompts(num_tokens: int, count: int) -> list[list[int]]:
    """So many prompts that begin like none before, of token ids that every vocabulary has."""
    return [[next(_numbers), *_chance.choices(_TOKENS, k=num_tokens - 1)] for _ in range(count)]


def _written(directory: Path, name: str, divisor: int, **shape: int) -> Model:
    """Two layers with random weights."""
    path = directory / name
    if not (path / "tokenizer.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_mixtral(path, num_layers=2, **shape)
        checkpoints.write_tokenizer(path)
    edit_config(path, max_position_embeddings=4096)  # a long prompt fits
    return Model(
        name,
        path,
        max_context=4096 // divisor,
        long_prompt_tokens=2048 // divisor,
        prefill_chunk=512 // divisor,
        steps=8 // divisor,
        tokens=32 * divisor,  # all streams of a model that is fast decode together for a while, too
    )
