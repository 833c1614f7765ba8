"""How likely each expert of a layer is to be used by the next step, estimated from the steps so far. No torch here.

The recent past weighs more: what is HALF_LIFE_STEPS steps old, half. A step of the usual size says who was used. A
longer one, a prompt, uses nearly every expert; it says how popular each is, and so how likely a step of the usual size
would have used it.
"""

from collections.abc import Callable, Sequence
from operator import mul

HALF_LIFE_STEPS = 256
"""The longer, the surer the estimate; the shorter, the sooner a new topic shows."""

MAX_WEIGHT = 16.0
"""A prompt is as much evidence as so many steps at most: it tells its topic, and may be one of several in turn."""

REPETITION = 1.5
"""How much more the counts of a run of steps scatter than those of independent ones, since a token's experts are likely
to be the next one's too. (1 + r) / (1 - r), where r is the correlation between one step and the next, 0.2."""

_GROWTH = 2.0 ** (1 / HALF_LIFE_STEPS)
_LARGE = 1e100  # its square is still a float


class LayerUsage:
    """The estimate for one layer.

    Nothing is made smaller as time goes by; later evidence is entered larger instead, so that a step costs no more than
    going through its counts. All is divided once the numbers are large.
    """

    __slots__ = ("_increment", "_mass", "_num_observed", "_squares", "_usual", "used")

    def __init__(self, num_experts: int) -> None:
        self.used = [0.0] * num_experts
        """By expert, evidence of its use, in the order of their probabilities."""
        self._mass = 0.0
        self._squares = 0.0
        self._increment = 1.0
        self._usual = 0.0
        self._num_observed = 0

    @property
    def num_steps(self) -> float:
        """How many steps of equal weight would be as much evidence."""
        return self._mass * self._mass / self._squares if self._squares else 0.0

    def seed(self, shares: Sequence[float]) -> None:
        """Starts from a prior that is as much evidence as HALF_LIFE_STEPS steps.

        Args:
            shares: By expert, of how many tokens it was chosen.
        """
        self._mass = self._squares = float(HALF_LIFE_STEPS)
        self.used = [HALF_LIFE_STEPS * min(share, 1.0) for share in shares]

    def observe(self, counts: Sequence[int]) -> None:
        """Takes note of one step: rows by expert."""
        total = sum(counts)
        if not total:
            return
        self._increment *= _GROWTH
        if self._increment > _LARGE:
            self._shrink()
        self._num_observed += 1
        # more selections than experts do not say how many more are usual
        size = min(total, len(counts))
        self._usual += (size - self._usual) / min(self._num_observed, HALF_LIFE_STEPS)
        used, amount = self.used, self._increment
        if total <= self._usual:
            for expert, count in enumerate(counts):
                if count:
                    used[expert] += amount
        else:
            # what is usual is not known from the first steps, so that they weigh as one
            amount *= min(total / self._usual, MAX_WEIGHT, self._num_observed)
            scale = self._usual / total
            for expert, count in enumerate(counts):
                if count:
                    used[expert] += amount * min(count * scale, 1.0)
        self._mass += amount
        self._squares += amount * amount

    def estimate(self) -> Callable[[int], float]:
        """Each expert's probability, by its number, to be used by a step of the usual size.

        It is drawn towards the layer's mean, as far as chance explains how far the experts are apart (the estimator of
        James and Stein). Of many experts that are equally popular some look popular by chance, and whoever takes those
        that look best takes the luckiest.
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
