"""Figures of a server, for Prometheus: counted by each process, summed over all.

Rules:

1. Every figure has a cell in memory that all processes of a server share. So any worker can
   answer with the sums, and need not ask the others.
2. The memory is laid out before there are workers. So the values that a label may have are named
   then; any other value is counted as "other".
3. Each worker has cells of its own, which nobody else writes to. The process that takes a worker's
   place goes on counting there: counters never fall. Gauges it begins anew.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Family", "Metrics"]

OTHER = "other"


class Family:
    """A figure, or one for each combination of its labels' values."""

    def __init__(
        self, metrics: Metrics, name: str, text: str, is_gauge: bool, labels: Sequence[str]
    ) -> None:
        self._metrics = metrics
        self.name = name
        self.text = text
        self.is_gauge = is_gauge
        self.labels = labels
        self.cells: dict[tuple[str, ...], int] = {}
        self._base: dict[int, int] = {}

    def add(self, *values: str, count: int = 1) -> None:
        """Count something."""
        self._metrics.cells[self._cell(values)] += count

    def set(self, value: int, *values: str) -> None:
        """Set a gauge, or a counter that is kept elsewhere since this process began."""
        cell = self._cell(values)
        if not self.is_gauge:
            value += self._base.setdefault(cell, self._metrics.cells[cell])
        self._metrics.cells[cell] = value

    def forget_process(self) -> None:
        """Another process goes on (rule 3)."""
        self._base.clear()
        if self.is_gauge:
            for cell in self.cells.values():
                self._metrics.cells[cell] = 0

    def _cell(self, values: tuple[str, ...]) -> int:
        cell = self.cells.get(values)
        return self.cells[(OTHER,) * len(self.labels)] if cell is None else cell


class Metrics:
    """All figures of a server.

    Attributes:
      families: in the order in which they were made.
      cells: those of this process.
    """

    def __init__(self) -> None:
        self.families: list[Family] = []
        self._size = 0
        self._shared = memoryview(b"").cast("Q")
        self.cells = self._shared

    def counter(self, name: str, text: str, **labels: Iterable[str]) -> Family:
        """A new figure that only grows; of its labels, the values that there may be."""
        return self._add(name, text, False, labels)

    def gauge(self, name: str, text: str) -> Family:
        return self._add(name, text, True, {})

    def _add(
        self, name: str, text: str, is_gauge: bool, labels: dict[str, Iterable[str]]
    ) -> Family:
        family = Family(self, name, text, is_gauge, tuple(labels))
        combinations: list[tuple[str, ...]] = [()]
        for values in labels.values():
            combinations = [(*known, value) for known in combinations for value in values]
        for combination in dict.fromkeys([*combinations, (OTHER,) * len(labels)]):
            family.cells[combination] = self._size
            self._size += 1
        self.families.append(family)
        return family

    def share(self, workers: int) -> None:
        """Have cells for so many workers. Called before there are any."""
        memory = mmap.mmap(-1, max(1, 8 * self._size * workers))
        self._shared = memoryview(memory).cast("Q")
        self.begin(0)

    def begin(self, worker: int) -> None:
        """Be the process of this worker from now on; the first is 0."""
        self.cells = self._shared[worker * self._size : (worker + 1) * self._size]
        for family in self.families:
            family.forget_process()

    def totals(self, family: Family) -> Iterator[tuple[tuple[str, ...], int]]:
        """The sums over all processes, by the labels' values."""
        for values, cell in family.cells.items():
            yield values, sum(self._shared[cell :: self._size])
