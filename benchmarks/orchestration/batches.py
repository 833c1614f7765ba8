"""The selections of one forward, counted once for all strategies and machines."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from benchmarks.traces import Ids


@dataclass(frozen=True, eq=False)
class Routed:
    """One layer of a forward."""

    ids: npt.NDArray[np.int16]
    """[rows, k]"""
    counts: list[int]
    """Rows by expert."""
    active: list[int]
    """Experts with rows."""

    @property
    def rows(self) -> int:
        """Tokens."""
        return len(self.ids)

    def ids_of(self, experts: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """The ids in a message to the CPU: the rows that chose one of these experts, with other experts set to -1."""
        is_one = np.zeros(len(self.counts), dtype=bool)
        is_one[list(experts)] = True
        wanted = is_one[self.ids]
        rows = wanted.any(axis=1)
        return np.where(wanted[rows], self.ids[rows], np.int16(-1)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward: the rows that are computed together."""

    ids: Ids
    """[layers, rows, k]"""
    num_experts: int
    _parts: dict[int, list["Batch"]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Tokens."""
        return len(self.ids[0])

    @cached_property
    def layers(self) -> list[Routed]:
        """The MoE layers in order."""
        return [self._routed(ids) for ids in self.ids]

    def split(self, rows: int) -> list["Batch"]:
        """Splits the batch into forwards of at most `rows` rows."""
        if rows not in self._parts:
            begins = range(0, self.rows, rows)
            self._parts[rows] = [Batch(self.ids[:, begin : begin + rows], self.num_experts) for begin in begins]
        return self._parts[rows]

    def _routed(self, ids: npt.NDArray[np.int16]) -> Routed:
        counts = np.bincount(ids.reshape(-1), minlength=self.num_experts).tolist()
        return Routed(ids, counts, [expert for expert, count in enumerate(counts) if count])
