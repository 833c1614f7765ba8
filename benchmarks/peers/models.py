"""The same random weights for every system: as bf16 safetensors, in our 8 and 4 bits, and as GGUF."""

import json
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.disk import check_missing
from benchmarks.peers.environment import Environment
from benchmarks.peers.gguf_file import TYPES
from benchmarks.peers.shapes import Shape
from benchmarks.peers.systems import ROOT
from fiddler.checkpoint import Checkpoint
from fiddler.convert.conversion import Conversion, Reporter
from fiddler.convert.recipe import Recipe
from tests.support.checkpoints import write_tokenizer

GGUF_FORMATS: Final = ("BF16", *TYPES)
RECIPES: Final = {
    "int8": Recipe("int8", "int8"),
    "int4": Recipe("int4", "int8"),
    "int4_dense_int4": Recipe("int4", "int4"),
}
_BITS: Final = {"int8": 17, "int4": 9}
"""Twice the bits of a weight with its scales, rounded up."""
_BYTES: Final = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
_GGUF_BYTES: Final = {"BF16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32, "Q4_K": 144 / 256}


def _elements(shape: Shape) -> tuple[int, int]:
    """How many weights the experts have, and the rest."""
    counts = [0, 0]
    for name, sizes in (item for part in shape.parts() for item in part.items()):
        counts[".experts." not in name] += math.prod(sizes)
    return counts[0], counts[1]


@dataclass(frozen=True, slots=True)
class Models:
    """Where they are."""

    directory: Path

    @property
    def plain(self) -> Path:
        """The bf16 checkpoint."""
        return self.directory / "bf16"

    def coded(self, name: str) -> Path:
        """The checkpoint in the format of that name in RECIPES."""
        return self.directory / name

    def gguf(self, name: str) -> Path:
        """The file in the format of that name in GGUF_FORMATS."""
        return self.directory / "gguf" / f"{name}.gguf"

    def check_room(self, shape: Shape) -> None:
        """Checks that the disk has room for what is missing, GGUF files included.

        Raises:
            typer.BadParameter: It has not.
        """
        experts, dense = _elements(shape)
        sizes = {self.plain.name: 2 * (experts + dense)}
        for name, recipe in RECIPES.items():
            bits = [_BITS[each] for each in (recipe.experts, recipe.dense)]
            sizes[self.coded(name).name] = (experts * bits[0] + dense * bits[1]) // 16
        gguf = sum(_GGUF_BYTES[name] for name in GGUF_FORMATS if not self.gguf(name).exists())
        sizes[self.gguf("BF16").parent.name] = int(gguf * (experts + dense))
        check_missing(self.directory, sizes, remedy="name a directory on another disk with --models")

    def write_checkpoints(self, shape: Shape) -> None:
        """Writes the safetensors that are not there yet."""
        if not (self.plain / "tokenizer.json").exists():
            self.plain.mkdir(parents=True, exist_ok=True)
            shape.write(self.plain)
            write_tokenizer(self.plain)
        for name, recipe in RECIPES.items():
            with closing(Checkpoint.open(self.plain)) as source:
                Conversion(source, self.coded(name), recipe).run(Reporter())

    def write_gguf(self, environment: Environment) -> None:
        """Writes the GGUF files that are not there yet.

        Raises:
            PeerError: They cannot be written.
        """
        if all(self.gguf(name).exists() for name in GGUF_FORMATS):
            return
        arguments = ["benchmarks.peers.gguf_file", str(self.plain), str(self.gguf("BF16").parent)]
        environment.run_module(arguments, "writing GGUF", cwd=ROOT)

    def coded_bytes(self, name: str) -> int:
        """What decoding one token reads of our own checkpoint: all but the embeddings and the experts not chosen."""
        with closing(Checkpoint.open(self.plain if name == "bf16" else self.coded(name))) as checkpoint:
            return int(checkpoint.dense_bytes - self._embedding_bytes() + checkpoint.expert_bytes * self._share())

    def kernel_bytes(self, name: str) -> int:
        """The same where transformers computes the dense part in bf16 and a kernel the experts in another format."""
        with closing(Checkpoint.open(self.plain)) as checkpoint:
            experts = checkpoint.expert_bytes * self._share() * _BYTES[name] / 2
            return int(checkpoint.dense_bytes - self._embedding_bytes() + experts)

    def gguf_bytes(self, name: str) -> int:
        """The same of a GGUF file, whose matrices are all in one type, but for routers in float32."""
        config = self._config()
        routers = config["num_hidden_layers"] * config["num_local_experts"] * config["hidden_size"]
        return int((self.kernel_bytes("bf16") / 2 - routers) * _GGUF_BYTES[name] + 4 * routers)

    def _share(self) -> float:
        """Of the experts, how many a token takes."""
        config = self._config()
        return float(config["num_experts_per_tok"] / config["num_local_experts"])

    def _embedding_bytes(self) -> int:
        config = self._config()
        return int(2 * config["vocab_size"] * config["hidden_size"])

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.plain / "config.json").read_text())
        return config
