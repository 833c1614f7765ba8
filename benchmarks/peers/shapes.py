"""The models that systems are compared on: a few layers of published shapes, and small ones to try things out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from tests.support.large_checkpoint import Shapes, mixtral_parts, write_mixtral
from tests.support.large_qwen3 import qwen3_parts, write_qwen3

Name = Literal["mixtral_8x7b", "qwen3_30b_a3b"]


class Shape(Protocol):
    """Sizes of a model."""

    def parts(self) -> list[Shapes]:
        """The shapes of the tensors of each file of its checkpoint, by name."""
        ...

    def write(self, directory: Path) -> Path:
        """Writes its bf16 checkpoint with random weights."""
        ...


@dataclass(frozen=True, slots=True)
class Mixtral:
    """Two layers with 8 experts, of which a token takes 2."""

    hidden: int
    inner: int
    heads: int
    vocab_size: int

    def parts(self) -> list[Shapes]:
        """See Shape."""
        return mixtral_parts(hidden=self.hidden, inner=self.inner, num_layers=2, vocab_size=self.vocab_size)

    def write(self, directory: Path) -> Path:
        """See Shape."""
        return write_mixtral(
            directory,
            hidden=self.hidden,
            inner=self.inner,
            num_layers=2,
            num_heads=self.heads,
            vocab_size=self.vocab_size,
        )


@dataclass(frozen=True, slots=True)
class Qwen3:
    """Four layers with many experts, of which a token takes 8."""

    hidden: int
    inner: int
    heads: int
    experts: int
    vocab_size: int

    def parts(self) -> list[Shapes]:
        """See Shape."""
        return qwen3_parts(**self._sizes())

    def write(self, directory: Path) -> Path:
        """See Shape."""
        return write_qwen3(directory, **self._sizes())

    def _sizes(self) -> dict[str, int]:
        return {
            "hidden": self.hidden,
            "inner": self.inner,
            "num_layers": 4,
            "num_heads": self.heads,
            "vocab_size": self.vocab_size,
            "num_experts": self.experts,
        }


@dataclass(frozen=True, slots=True)
class Model:
    """One that --model names."""

    directory: str
    """Of its files."""
    results: str
    """What the names of its results begin with."""
    full: Shape
    small: Shape
    """For --quick. llama.cpp's Q4_K takes rows of a multiple of 256."""


MODELS: Final[Mapping[Name, Model]] = {
    "mixtral_8x7b": Model(
        "mixtral_2_layers",
        "peers",
        Mixtral(hidden=4096, inner=14336, heads=32, vocab_size=32000),
        Mixtral(hidden=1024, inner=3584, heads=16, vocab_size=2048),
    ),
    "qwen3_30b_a3b": Model(
        "qwen3_4_layers",
        "peers.qwen3_30b_a3b",
        Qwen3(hidden=2048, inner=768, heads=32, experts=128, vocab_size=32000),
        Qwen3(hidden=256, inner=256, heads=8, experts=32, vocab_size=2048),
    ),
}
