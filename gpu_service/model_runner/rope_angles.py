"""Which angles the positions of a sequence get where they depend on the sequence's length. Imports no torch.

transformers takes them from the longest position of a forward: for a prompt from the prompt's length, for a token that
follows it from the token's own position. Here a forward may hold several sequences, or a part of one, so the length is
given with each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Angles = tuple[int, ...]
"""Sequences with equal ones get the same angles at the same positions."""

_MSCALES: Final = ("short_mscale", "long_mscale")
"""PhiMoE's factors of all angles, which it chooses by length whatever the type of its RoPE is."""


@dataclass(frozen=True, slots=True)
class RopeAngles:
    """Which lengths have the same angles. Without arguments: all of them."""

    steps: tuple[int, ...] = ()
    """Lengths beyond which a sequence has other angles."""
    grows_beyond: int | None = None
    """The length beyond which each length has angles of its own; None: there is none."""
    recomputes: bool = False
    """Whether a sequence that gets other angles while it is generated is computed again from its beginning.

    Otherwise the keys of its earlier tokens remain as they are.
    """

    @classmethod
    def of_config(cls, config: Any, *, recomputes: bool = False) -> "RopeAngles":
        """Reads the configuration of a decoder.

        Args:
            config: transformers'.
            recomputes: Whether the family's code computes a sequence again.
        """
        steps: set[int] = set()
        grows_beyond = math.inf
        for rope in rope_parameters(config).values():
            kind = str(rope.get("rope_type", "default"))
            if "dynamic" in kind:
                grows_beyond = min(grows_beyond, config.max_position_embeddings)
            original = rope.get("original_max_position_embeddings")
            if original and (kind == "longrope" or (kind != "default" and any(name in rope for name in _MSCALES))):
                steps.add(int(original))
        return cls(
            tuple(sorted(steps)),
            None if grows_beyond == math.inf else int(grows_beyond),
            recomputes=recomputes and bool(steps),
        )

    @property
    def depend_on_length(self) -> bool:
        """Whether sequences of different lengths may have different angles."""
        return bool(self.steps) or self.grows_beyond is not None

    def of(self, length: int) -> Angles:
        """The angles of a sequence.

        Args:
            length: Tokens of the prompt; for a token that follows it, those up to and including itself.
        """
        beyond = tuple(int(length > step) for step in self.steps)
        return beyond if self.grows_beyond is None else (*beyond, length if length > self.grows_beyond else 0)


ALL_ALIKE: Final = RopeAngles()
"""For models whose angles do not depend on length."""


def rope_parameters(config: Any) -> Mapping[str, Mapping[str, Any]]:
    """The parameters of RoPE by type of layer; by "" if all layers have the same, and none if there is no RoPE."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, Mapping) or not parameters:
        return {}
    nested = {name: each for name, each in parameters.items() if isinstance(each, Mapping)}
    return nested if nested and not isinstance(parameters.get("rope_type"), str) else {"": parameters}
