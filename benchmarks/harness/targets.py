"""Targets for results, and the rule that decides whether a result meets its target."""

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.results import Field, Report, quantile


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a median."""

    bound: float
    at_least: bool = True

    def is_met(self, value: float) -> bool:
        """Whether a value is on the right side of the bound, or equal to it."""
        return value >= self.bound if self.at_least else value <= self.bound


def judge(values: Sequence[float], target: Target) -> str:
    """Returns "ok", "missed", or "inconclusive" if p10 to p90 is wider than the distance of median and bound."""
    ordered = sorted(values)
    median = statistics.median(ordered)
    if quantile(ordered, 0.9) - quantile(ordered, 0.1) > abs(median - target.bound):
        return "inconclusive"
    return "ok" if target.is_met(median) else "missed"


def resampled_medians(values: Sequence[float], draws: int = 400) -> list[float]:
    """Medians of as many values, drawn from these with replacement, which says how far off the median may be."""
    chance = random.Random(0)
    return [statistics.median(chance.choices(values, k=len(values))) for _ in range(draws)]


@dataclass(slots=True)
class Judge:
    """Writes results, adds a verdict to those with a target, and prints a summary to standard error."""

    out: Report
    targets: Mapping[str, Target]
    _verdicts: list[str] = field(default_factory=list)

    def samples(self, name: str, values: Sequence[float], unit: str, **more: Field) -> None:
        """Writes one result as `Report.samples` does, with a verdict if it has a target."""
        self._write(name, values, unit, judged=values, more=more)

    def median_of_samples(self, name: str, values: Sequence[float], unit: str, **more: Field) -> None:
        """Writes many samples that each vary more than their median does: the verdict is about the median.

        Its spread is that of `resampled_medians`, of which `median_p10` and `median_p90` are written, too.
        """
        judged = resampled_medians(values)
        low, high = (quantile(sorted(judged), share) for share in (0.1, 0.9))
        self._write(name, values, unit, judged=judged, more={"median_p10": low, "median_p90": high, **more})

    def _write(
        self, name: str, values: Sequence[float], unit: str, *, judged: Sequence[float], more: Mapping[str, Field]
    ) -> None:
        target = self.targets.get(name)
        if target is None:
            self.out.samples(name, values, unit, **more)
            return
        verdict, bound = judge(judged, target), "at_least" if target.at_least else "at_most"
        # an inconclusive median is still on one side of the bound
        side = "meets" if target.is_met(statistics.median(values)) else "misses"
        more = {bound: target.bound, "verdict": verdict, "median_is": side, **more}
        self.out.samples(name, values, unit, **more)
        sign = ">=" if target.at_least else "<="
        figures = f"{statistics.median(values):8.3g} {sign} {target.bound:<5g}"
        self._verdicts.append(f"{verdict:12} {figures} (median {side:6}) {name}")

    def summarise(self) -> None:
        """Prints one line for every target that was judged."""
        print("\n".join(self._verdicts), file=sys.stderr, flush=True)
