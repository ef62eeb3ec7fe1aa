"""Figures that a server keeps in memory which it shares with the harness.

So they can be read at any moment, and reading them costs the server nothing.
"""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["Counters"]

REQUESTS = 0
OPENED = 1
CLOSED = 2
FIRST_DURATION = 3
DURATIONS = 4096


class Counters:
    """Counts of one server.

    Args:
      path: the file that is shared. The first to use it creates it.
    """

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate((FIRST_DURATION + DURATIONS) * 8)
            self._slots = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    def count_request(self) -> None:
        """A request has been answered."""
        self._slots[REQUESTS] += 1

    def count_opened(self) -> None:
        """There is a new connection."""
        self._slots[OPENED] += 1

    def count_closed(self, seconds: float) -> None:
        """A connection is no more, and closing it took so long."""
        closed = int(self._slots[CLOSED])
        self._slots[FIRST_DURATION + closed % DURATIONS] = seconds
        self._slots[CLOSED] = closed + 1

    @property
    def requests(self) -> int:
        return int(self._slots[REQUESTS])

    @property
    def connections(self) -> int:
        return int(self._slots[OPENED] - self._slots[CLOSED])

    @property
    def close_durations(self) -> list[float]:
        """Seconds of the last 4,096 closes at most, in no order."""
        known = min(int(self._slots[CLOSED]), DURATIONS)
        return list(self._slots[FIRST_DURATION:][:known])
