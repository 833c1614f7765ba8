"""Which experts of a layer to stream and which to send to the CPU, given the seconds that each adds to each side.

planner.py computes the seconds. The longest of three sums is to be minimised, which is a knapsack problem. With many
experts, the best cut of a sorted order is close to the best split, and a lower bound on all splits shows whether it is
close enough. The remaining cases, most of them with few experts, are searched.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_SLACK = 1.015
"""A split that exceeds a lower bound by at most this factor is good enough."""
_MOST_NODES = 1000
"""How many nodes a search visits at most."""
_TINY_SECONDS = 1e-30
"""Keeps a rate finite."""


@dataclass(slots=True)
class Sides:
    """Seconds that each expert adds, by position. The experts with most rows come first: `remote` never rises."""

    remote: list[float]
    """Added to the CPU's side by an expert that is sent there."""
    copy: list[float]
    """Added to the copies by an expert that is streamed."""
    compute: list[float]
    """Added to the GPU's computing by an expert that is streamed."""
    round_trip: float
    """Added to the CPU's side if anything is sent."""
    resident: float
    """The GPU's computing without any streamed expert."""

    def ordered(self, order: Iterable[int]) -> "Sides":
        """Returns the same experts in another order."""
        remote, copy, compute = ([side[i] for i in order] for side in (self.remote, self.copy, self.compute))
        return Sides(remote, copy, compute, self.round_trip, self.resident)


@dataclass(slots=True)
class Cut:
    """Streams the first experts and sends all others, in the given order."""

    num_streamed: int
    remote_seconds: float
    gpu_seconds: float
    order: None = None


class Split:
    """Streams the first m experts of an order and sends all others. m is the best one, or given."""

    __slots__ = ("compute", "copies", "crossing", "num_streamed", "order", "remote")

    def __init__(self, sides: Sides, order: Sequence[int] | None = None, num_streamed: int | None = None) -> None:
        """Sums up each side for every m.

        Args:
            sides: What each expert adds.
            order: Positions in `sides`; None: their given order.
            num_streamed: m; None: the best one.
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
        """The CPU's side."""
        return self.remote[self.num_streamed]

    @property
    def gpu_seconds(self) -> float:
        """The GPU's side: the longer of copies and computing."""
        return max(self.copies[self.num_streamed], self.compute[self.num_streamed])

    @property
    def seconds(self) -> float:
        """The longer side."""
        return max(self.remote_seconds, self.gpu_seconds)


@dataclass(slots=True)
class _Weights:
    """Weights of the three sides, which sum to 1, and the lower bound that follows from them.

    The longest side is at least the weighted mean of all three. That mean is smallest if each expert is on the side on
    which it weighs less.
    """

    bound: float
    remote: float
    copy: float
    compute: float

    def least(self, sides: Sides) -> Iterator[float]:
        """Yields each expert's weight on the side on which it weighs less."""
        for remote, copy, compute in zip(sides.remote, sides.copy, sides.compute, strict=True):
            yield min(self.remote * remote, self.copy * copy + self.compute * compute)


def cut_by_copies(
    remote: Sequence[float], *, round_trip: float, transfer: float, resident: float, most_compute: float
) -> Cut | None:
    """Finds the best split fast, if every copy takes the same time and the GPU's computing is never the longest side.

    That holds for nearly every layer. Of all ways to stream m experts, streaming those with most rows is then the best
    for the CPU, and as good as any other for the copies.

    Args:
        remote: As in Sides.
        round_trip: As in Sides.
        transfer: Seconds of each copy.
        resident: As in Sides.
        most_compute: The most that any expert adds to the GPU's computing.

    Returns:
        None if the GPU's computing may be the longest side.
    """
    sums = _remote_sums(remote, round_trip)
    m = bisect_left(range(len(remote)), True, key=lambda m: sums[m] <= m * transfer or sums[m] <= resident)
    if m and sums[m - 1] <= max(m * transfer, resident):
        m -= 1
    streamed = max(m * transfer, resident) if m else resident  # without a copy; 0 x an infinite transfer is NaN
    return Cut(m, sums[m], streamed) if resident + m * most_compute <= streamed else None


def best_split(sides: Sides) -> Split:
    """Finds a split that is at most 2 % longer than the best one; with many experts rarely longer than that."""
    split = Split(sides)
    bound = _bound_by_number(sides, split)
    if split.seconds <= bound * _SLACK:
        return split
    return _improve(sides, split, bound)


def _bound_by_number(sides: Sides, split: Split) -> float:
    """Returns a lower bound: for each m, every side is at least that of the m experts that are best for it alone."""
    remote, copies, compute = split.remote, _sums(sorted(sides.copy)), _sums(sorted(sides.compute), sides.resident)
    _, m = _best_cut(remote, copies, compute)
    return max(remote[m], copies[m], compute[m])


def _improve(sides: Sides, first: Split, bound: float) -> Split:
    """Finds the best cut of several orders, or a better split, given the cut of the first order and a lower bound."""
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
    return _search(sides, weights, seconds=best.seconds, bound=bound) or best


def _split_by_rate(sides: Sides, first: Split, copy_share: float) -> tuple[Split, _Weights]:
    """Finds the best cut of the order by the cost of streaming over what it saves, and the weights that belong to it.

    Args:
        sides: What each expert adds.
        first: The split in the given order.
        copy_share: The share of copies, against computing, in the cost of streaming: from 0 to 1.
    """
    costs = zip(_mean(sides.copy, sides.compute, copy_share), sides.remote, strict=True)
    rates = [cost / (saved + _TINY_SECONDS) for cost, saved in costs]
    positions = range(len(rates))
    order = sorted(positions, key=rates.__getitem__)
    split = first if order == list(positions) else Split(sides, order)
    # if experts could be divided, the rate of the one that the best split divides would weight the sides
    remote, streamed = split.remote, _mean(split.copies, split.compute, copy_share)
    last = max(0, bisect_left(positions, True, key=lambda m: remote[m] <= streamed[m]) - 1)
    weight = rates[order[last]] / (1 + rates[order[last]])
    bound = weight * remote[last] + (1 - weight) * streamed[last]
    return split, _Weights(bound, weight, (1 - weight) * copy_share, (1 - weight) * (1 - copy_share))


def _mean(copies: list[float], compute: list[float], copy_share: float) -> list[float]:
    if copy_share in (0.0, 1.0):
        return copies if copy_share else compute
    return [copy_share * copy + (1 - copy_share) * other for copy, other in zip(copies, compute, strict=True)]


def _search(sides: Sides, weights: list[_Weights], *, seconds: float, bound: float) -> Split | None:
    """Finds a split that is shorter than `seconds`; None if there is none within the limit of nodes.

    Depth first, each expert's likelier side first. A branch is cut if the weights show that it can hardly be shorter
    than the best split so far.
    """
    num = len(sides.remote)
    remote, copy, compute = sides.remote, sides.copy, sides.compute
    likely = max(weights, key=lambda weight: weight.bound)
    streams_first = [least < likely.remote * cost for least, cost in zip(likely.least(sides), remote, strict=True)]
    # the least that the experts from each position on weigh
    bounds = [(w.remote, w.copy, w.compute, _sums(reversed([*w.least(sides)]))[::-1]) for w in weights]
    best, goal = None, seconds / _SLACK
    nodes = [(0, sides.round_trip, 0.0, sides.resident, 0)]  # (position, seconds of each side, bits of the streamed)
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
    """Returns the first m at which the CPU is not the longest side, and the best m with the fewest copies.

    Args:
        remote: Seconds by m, never rising, and 0 at the end.
        copies: Seconds by m, never falling.
        compute: Seconds by m, never falling.
    """
    num = len(remote) - 1
    crossing = bisect_left(range(num), True, key=lambda m: remote[m] <= copies[m] or remote[m] <= compute[m])
    before = crossing and remote[crossing - 1] <= max(copies[crossing], compute[crossing])
    return crossing, crossing - 1 if before else crossing


def _remote_sums(remote: Sequence[float], round_trip: float) -> list[float]:
    """Returns, by m, the seconds of the CPU's side if the first m are streamed and all others sent."""
    seconds = _sums(reversed(remote), round_trip)
    seconds[0] = 0.0  # no message
    seconds.reverse()
    return seconds


def _sums(seconds: Iterable[float], initial: float = 0.0) -> list[float]:
    """Returns, by m, the sum of the first m."""
    return list(accumulate(seconds, initial=initial))
