"""When to poll for completions instead of sleeping until one comes.

Falling asleep and being woken costs more than many requests do. Where the next completion always
comes at once, as with a client that waits for each answer, polling is both faster and cheaper.

1. After STREAK sleeps in a row, each shorter than SHORT_SLEEP, the loop polls.
2. It polls for at most BUSY_POLL_NS at a time, and only if nothing was submitted meanwhile. The
   first poll that finds nothing puts it back to sleep.
3. A tick that moved more than FLOW bytes is part of a bulk transfer. There the loop sleeps: more
   completions gather meanwhile, and handling them together is cheaper.

So at worst one poll in STREAK sleeps is wasted, and an idle loop sleeps.
"""

from __future__ import annotations

from time import perf_counter_ns

__all__ = ["BUSY_POLL_NS", "Polling"]

STREAK = 4

#: Nanoseconds.
SHORT_SLEEP = 150_000
BUSY_POLL_NS = 50_000

#: Bytes in both directions.
FLOW = 16384


class Polling:
    """What is known of the last sleeps.

    Attributes:
      awake: true while the loop should not sleep.
    """

    __slots__ = ("_asleep_since", "_moved", "_short_sleeps", "awake")

    def __init__(self) -> None:
        self.awake = False
        self._asleep_since = 0
        self._short_sleeps = 0
        self._moved = 0

    def falls_asleep(self) -> None:
        self._asleep_since = perf_counter_ns()

    def wakes(self) -> None:
        if perf_counter_ns() - self._asleep_since < SHORT_SLEEP:
            self._short_sleeps += 1
            self.awake = self._short_sleeps >= STREAK
        else:
            self._short_sleeps = 0

    def has_moved(self, total: int) -> None:
        """``total`` bytes were sent and received since the start."""
        if total - self._moved > FLOW:
            self.stop()
        self._moved = total

    def stop(self) -> None:
        self.awake = False
        self._short_sleeps = 0
