"""What a conversion makes of a checkpoint: the format of its experts and that of its dense layers."""

from dataclasses import dataclass
from typing import Final, Literal

CodedFormat = Literal["int8", "int4"]
"""What a matrix may be coded in."""
ExpertFormat = CodedFormat
DenseFormat = Literal["auto", "bfloat16", "int8", "int4"]

BITS: Final[dict[CodedFormat, int]] = {"int8": 8, "int4": 4}
"""Of a code."""

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

    auto leaves them as they are stored, but decodes coded ones to the dtype that the model is computed in. int8 and
    int4 code them as experts are; see `linear_format`. Embeddings, norms, routers and what else there is are always
    copied.
    """

    @property
    def codes_dense_in(self) -> CodedFormat | None:
        """What the dense part is coded in; None if it stays plain."""
        return self.dense if self.dense == "int8" or self.dense == "int4" else None

    @property
    def description(self) -> str:
        """In short, for logs and file names: "int4", "int4-dense-int8"."""
        return self.experts if self.dense == "auto" else f"{self.experts}-dense-{self.dense}"


def linear_format(asked: CodedFormat, inputs: int) -> CodedFormat:
    """What a linear layer of the dense part is coded in.

    Experts that groups do not divide are refused, but a model may have a single such layer in its dense part: int8,
    which has no groups, still saves half of its bytes.

    Args:
        asked: What the dense part is to be coded in.
        inputs: Of the layer.
    """
    return asked if inputs % GROUP_INPUTS == 0 else "int8"
