"""What a conversion makes of a checkpoint: the format of its experts and that of its dense layers."""

from dataclasses import dataclass
from typing import Final, Literal

ExpertFormat = Literal["int8", "int4"]
DenseFormat = Literal["auto", "bfloat16", "int8"]

VERSION: Final = 1
"""Of the way in which codes and scales are chosen and stored; another one makes other files."""

GROUP_INPUTS: Final = 32
"""Adjacent inputs that share a scale in int4."""

SHARD_BYTES: Final = 2 * 2**30
"""Of a file of the result, about: what a conversion that was interrupted has to write again at most."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made of a checkpoint."""

    experts: ExpertFormat
    """int8: a scale for each output; int4: one for each 32 inputs of an output. Both are symmetric."""
    dense: DenseFormat = "auto"
    """Of the weights of linear layers that are no experts.

    auto leaves them as they are stored, but decodes coded ones to the dtype that the model is computed in. int8 codes
    them as experts are. Embeddings, norms, routers and what else there is are always copied.
    """

    @property
    def description(self) -> str:
        """In short, for logs and file names: "int4", "int4-dense-int8"."""
        return self.experts if self.dense == "auto" else f"{self.experts}-dense-{self.dense}"
