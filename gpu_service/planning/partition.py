"""Which experts of a layer to stream and which to send to the CPU, given the seconds that each adds to each side.

Pure Python; no torch. What the seconds are is planner.py's. The longest of three sums is to be as short as can be,
which is a knapsack problem. Where experts are many, a cut of the right order is near the best split; a bound, below
which no split can be, shows whether it is near enough. A search is for the cases that this leaves, most of them of few
experts.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_SLACK = 1.015  # a split that is longer than a bound by this factor is good enough
_MOST_NODES = 1000  # of a search
_TINY_SECONDS = 1e-30


@dataclass(slots=True)
class Sides:
    """Seconds that each expert adds, by position; those of most rows come first, so that `remote` never rises."""

    remote: list[float]
    """To the CPU's side, if it is sent there."""
    copy: list[float]
    """To the copies, if it is streamed."""
    compute: list[float]
    """To the computing on the GPU, if it is streamed."""
    round_trip: float
    """Of the CPU's side where anything is sent."""
    resident: float
    """Of computing on the GPU, whatever is streamed."""

    def ordered(self, order: Iterable[int]) -> "Sides":
        """The same in another order."""
        remote, copy, compute = ([side[i] for i in order] for side in (self.remote, self.copy, self.compute))
        return Sides(remote, copy, compute, self.round_trip, self.resident)


@dataclass(slots=True)
class Cut:
    """The first experts, as they come, are streamed and all others sent."""

    num_streamed: int
    remote_seconds: float
    gpu_seconds: float
    order: None = None


class Split:
    """An order of experts, of which the first m are streamed and all others sent: the best m, or one that is given."""

    __slots__ = ("compute", "copies", "crossing", "num_streamed", "order", "remote")

    def __init__(self, sides: Sides, order: Sequence[int] | None = None, num_streamed: int | None = None) -> None:
        """Adds up each side by m.

        Args:
            sides: What each expert adds.
            order: Positions in `sides`; None: as they come.
            num_streamed: None: whatever is best.
        """
        ordered = sides if order is None else sides.ordered(order)
        self.order = order
        self.remote = _remote_sums(ordered.remote, sides.round_trip)
        self.copies = _sums(ordered.copy)
        self.compute = _sums(ordered.compute, sides.resident)
        self.crossing, best = _best_cut(self.remote, self.copies, self.compute)
        self.num_streamed = best if num_streamed is None else num_streamed

    @property
    def remote_seconds(self) -> float:
        """Of the CPU's side."""
        return self.remote[self.num_streamed]

    @property
    def gpu_seconds(self) -> float:
        """Of the GPU's side: the longer of copies and computing."""
        return max(self.copies[self.num_streamed], self.compute[self.num_streamed])

    @property
    def seconds(self) -> float:
        """Of the longer side."""
        return max(self.remote_seconds, self.gpu_seconds)


@dataclass(slots=True)
class _Weights:
    """Weights of the three sides that add up to 1, and the bound that follows from them.

    The longest side is never shorter than the weighted mean of all three, and that mean is least where each expert is
    on the side on which it weighs less.
    """

    bound: float
    remote: float
    copy: float
    compute: float

    def least(self, sides: Sides) -> Iterator[float]:
        """What each expert weighs where it weighs less."""
        for remote, copy, compute in zip(sides.remote, sides.copy, sides.compute, strict=True):
            yield min(self.remote * remote, self.copy * copy + self.compute * compute)


def cut_by_copies(
    remote: Sequence[float], round_trip: float, transfer: float, resident: float, most_compute: float
) -> Cut | None:
    """The best split, quickly, where every copy takes the same and computing is never the longest: nearly every layer.

    Of all ways to stream m experts, that of most rows is the best for the CPU then, and as good as any for the copies.

    Args:
        remote: See Sides, as are the two below that are called the same.
        round_trip: See above.
        transfer: Seconds of each copy.
        resident: See above.
        most_compute: The most that any expert adds to the computing on the GPU.

    Returns:
        None where computing may matter.
    """
    sums = _remote_sums(remote, round_trip)
    m = bisect_left(range(len(remote)), True, key=lambda m: sums[m] <= m * transfer or sums[m] <= resident)
    if m and sums[m - 1] <= max(m * transfer, resident):
        m -= 1
    streamed = max(m * transfer, resident) if m else resident  # no copy is infinite times nothing
    return Cut(m, sums[m], streamed) if resident + m * most_compute <= streamed else None


def best_split(sides: Sides) -> Split:
    """A split that is at most 2 % longer than the best one; rarely more where experts are many."""
    split = Split(sides)
    bound = _bound_by_number(sides, split)
    if split.seconds <= bound * _SLACK:
        return split
    return _improve(sides, split, bound)


def _bound_by_number(sides: Sides, split: Split) -> float:
    """No m experts are better for the CPU than those of most rows, for copies than the m shortest, and so on."""
    remote, copies, compute = split.remote, _sums(sorted(sides.copy)), _sums(sorted(sides.compute), sides.resident)
    _, m = _best_cut(remote, copies, compute)
    return max(remote[m], copies[m], compute[m])


def _improve(sides: Sides, first: Split, bound: float) -> Split:
    """The best cut of several orders, or better, given that of the first and a bound on what is possible."""
    best, weights = first, []
    copies_bind = first.copies[first.num_streamed] > first.compute[first.num_streamed]
    for copy_share in (1.0, 0.0, 0.5) if copies_bind else (0.0, 1.0, 0.5):
        split, weight = _split_by_rate(sides, first, copy_share)
        if split.seconds < best.seconds:
            best = split
        bound = max(bound, weight.bound)
        if best.seconds <= bound * _SLACK:
            return best
        weights.append(weight)
    return _search(sides, weights, best.seconds, bound) or best


def _split_by_rate(sides: Sides, first: Split, copy_share: float) -> tuple[Split, _Weights]:
    """The best cut of the order in which streaming costs least for what it saves, and weights that go with it.

    Args:
        sides: What each expert adds.
        first: The split in the order that they are in.
        copy_share: How much copies count against computing, for the cost of streaming: 1 alone, 0 not at all.
    """
    costs = zip(_mean(sides.copy, sides.compute, copy_share), sides.remote, strict=True)
    rates = [cost / (saved + _TINY_SECONDS) for cost, saved in costs]
    positions = range(len(rates))
    order = sorted(positions, key=rates.__getitem__)
    split = first if order == list(positions) else Split(sides, order)
    # At the best split of experts that could be split, the rate of the one that is split weighs the sides.
    remote, streamed = split.remote, _mean(split.copies, split.compute, copy_share)
    last = max(0, bisect_left(positions, True, key=lambda m: remote[m] <= streamed[m]) - 1)
    weight = rates[order[last]] / (1 + rates[order[last]])
    bound = weight * remote[last] + (1 - weight) * streamed[last]
    return split, _Weights(bound, weight, (1 - weight) * copy_share, (1 - weight) * (1 - copy_share))


def _mean(copies: list[float], compute: list[float], copy_share: float) -> list[float]:
    if copy_share in (0.0, 1.0):
        return copies if copy_share else compute
    return [copy_share * copy + (1 - copy_share) * other for copy, other in zip(copies, compute, strict=True)]


def _search(sides: Sides, weights: list[_Weights], seconds: float, bound: float) -> Split | None:
    """A split that is shorter than `seconds`; None where none was found.

    Goes through the splits depth first, each expert's likelier side first. It leaves out those that weights show to be
    hardly shorter than what is known, and gives up after a while.
    """
    num = len(sides.remote)
    remote, copy, compute = sides.remote, sides.copy, sides.compute
    likely = max(weights, key=lambda weight: weight.bound)
    streams_first = [least < likely.remote * cost for least, cost in zip(likely.least(sides), remote, strict=True)]
    # what the experts from a position on weigh at least
    bounds = [(w.remote, w.copy, w.compute, _sums(reversed([*w.least(sides)]))[::-1]) for w in weights]
    best, goal = None, seconds / _SLACK
    nodes = [(0, sides.round_trip, 0.0, sides.resident, 0)]  # (position, seconds of each side, bits of those streamed)
    for _ in range(_MOST_NODES):
        if not nodes or goal <= bound:
            break
        i, sent, copied, computed, streamed = nodes.pop()
        if max(sent, copied, computed) >= goal:
            continue
        if any(x * sent + y * copied + z * computed + rest[i] >= goal for x, y, z, rest in bounds):
            continue
        if i == num:
            best, goal = streamed, max(sent, copied, computed) / _SLACK
            continue
        there = (i + 1, sent + remote[i], copied, computed, streamed)
        here = (i + 1, sent, copied + copy[i], computed + compute[i], streamed | 1 << i)
        nodes += (there, here) if streams_first[i] else (here, there)
    if best is None:
        return None
    return Split(sides, sorted(range(num), key=lambda i: not best >> i & 1), best.bit_count())


def _best_cut(remote: Sequence[float], copies: Sequence[float], compute: Sequence[float]) -> tuple[int, int]:
    """(the first m at which the CPU is not the longest, the best m); of equally good ones that with the fewest copies.

    Args:
        remote: Seconds by m, never rising, and 0 in the end.
        copies: The same, never falling.
        compute: The same, never falling.
    """
    num = len(remote) - 1
    crossing = bisect_left(range(num), True, key=lambda m: remote[m] <= copies[m] or remote[m] <= compute[m])
    before = crossing and remote[crossing - 1] <= max(copies[crossing], compute[crossing])
    return crossing, crossing - 1 if before else crossing


def _remote_sums(remote: Sequence[float], round_trip: float) -> list[float]:
    """By m: seconds of the CPU's side where the first m are streamed and all others sent."""
    seconds = _sums(reversed(remote), round_trip)
    seconds[0] = 0.0  # no message
    seconds.reverse()
    return seconds


def _sums(seconds: Iterable[float], initial: float = 0.0) -> list[float]:
    """By m: of the first m."""
    return list(accumulate(seconds, initial=initial))
