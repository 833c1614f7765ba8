"""The checkpoint that several benchmarks measure: two layers of Mixtral-8x7B's shape with random weights."""

from pathlib import Path
from typing import Final

from tests.support import checkpoints
from tests.support.large_checkpoint import mixtral_bytes, write_mixtral

NAME: Final = "mixtral_2_layers"
SHAPE: Final = {"hidden": 4096, "inner": 14336, "num_layers": 2, "num_heads": 32, "vocab_size": 32000}
NUM_BYTES: Final = mixtral_bytes(**SHAPE)
REMEDY: Final = "name a directory on another disk with --checkpoint"


def write(directory: Path, **shape: int) -> Path:
    """Writes it unless it is there; tokenizer.json comes last, so that a directory with one is whole.

    Args:
        directory: Where it is written.
        shape: Another shape than SHAPE.
    """
    if not (directory / "tokenizer.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_mixtral(directory, **(shape or SHAPE))
        checkpoints.write_tokenizer(directory)
    return directory
