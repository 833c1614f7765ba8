"""How likely each expert of a layer is to be used by the next step, estimated from the steps so far.

Recent steps weigh more: a step that is HALF_LIFE_STEPS old counts half. A step of the usual size shows which experts
are used. A longer one, a prompt, uses nearly every expert; its counts show how popular each expert is, and so how
likely a step of the usual size would have used it.
"""

from collections.abc import Callable, Sequence
from operator import mul

HALF_LIFE_STEPS = 256
"""A longer half-life makes the estimate more certain; a shorter one follows a new topic sooner."""

MAX_WEIGHT = 16.0
"""The most steps that a prompt counts for: it shows its own topic, and prompts of several topics may alternate."""

REPETITION = 1.5
"""By which factor counts of consecutive steps vary more than those of independent steps, because one token's experts
are likely to be used by the next token too: (1 + r) / (1 - r) with r = 0.2, the correlation between consecutive
steps."""

_GROWTH = 2.0 ** (1 / HALF_LIFE_STEPS)
_LARGE = 1e100
"""Numbers are scaled down beyond this; its square is still a float."""


class LayerUsage:
    """The estimate for one layer.

    Old evidence is not reduced with each step. Instead, new evidence is entered with a growing weight, so that a step
    costs one pass over its counts. Everything is scaled down when the numbers become large.
    """

    __slots__ = ("_increment", "_mass", "_num_observed", "_squares", "_usual", "used")

    def __init__(self, num_experts: int) -> None:
        self.used = [0.0] * num_experts
        """By expert, evidence of its use; it sorts experts as their probabilities do."""
        self._mass = 0.0
        self._squares = 0.0
        self._increment = 1.0
        self._usual = 0.0
        self._num_observed = 0

    @property
    def num_steps(self) -> float:
        """The number of equally weighted steps that would be as much evidence."""
        return self._mass * self._mass / self._squares if self._squares else 0.0

    def seed(self, shares: Sequence[float]) -> None:
        """Starts from a prior that counts as HALF_LIFE_STEPS steps.

        Args:
            shares: By expert, the share of tokens that chose it.
        """
        self._mass = self._squares = float(HALF_LIFE_STEPS)
        self.used = [HALF_LIFE_STEPS * min(share, 1.0) for share in shares]

    def observe(self, counts: Sequence[int]) -> None:
        """Adds one step: rows by expert."""
        total = sum(counts)
        if not total:
            return
        self._increment *= _GROWTH
        if self._increment > _LARGE:
            self._shrink()
        self._num_observed += 1
        # capped: beyond the number of experts, the total no longer shows what is usual
        size = min(total, len(counts))
        self._usual += (size - self._usual) / min(self._num_observed, HALF_LIFE_STEPS)
        used, amount = self.used, self._increment
        if total <= self._usual:
            for expert, count in enumerate(counts):
                if count:
                    used[expert] += amount
        else:
            # the first steps do not show yet what is usual, so that their weight is limited
            amount *= min(total / self._usual, MAX_WEIGHT, self._num_observed)
            scale = self._usual / total
            for expert, count in enumerate(counts):
                if count:
                    used[expert] += amount * min(count * scale, 1.0)
        self._mass += amount
        self._squares += amount * amount

    def estimate(self) -> Callable[[int], float]:
        """Returns the probability, by the expert's number, that a step of the usual size uses it.

        Estimates are shrunk towards the layer's mean by the share of their variance that chance explains (the
        James-Stein estimator). Otherwise, of many equally popular experts, those with the highest counts by chance
        would be preferred.
        """
        used, mass = self.used, self._mass
        if not mass:
            return lambda expert: 0.0
        mean = sum(used) / len(used) / mass
        variance = sum(map(mul, used, used)) / len(used) / (mass * mass) - mean * mean
        chance = REPETITION * mean * (1 - mean) / self.num_steps
        kept = 1 - chance / variance if variance > chance else 0.0
        scale, offset = kept / mass, (1 - kept) * mean
        return lambda expert: offset + scale * used[expert]

    def _shrink(self) -> None:
        scale = 1 / self._increment
        self.used = [used * scale for used in self.used]
        self._mass *= scale
        self._squares *= scale * scale
        self._increment = 1.0
