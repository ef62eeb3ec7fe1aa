"""Deadlines that hold in a trio run whatever its clock does (rule C3).

The clock of a run may stand still: that of a test does (trio.testing.MockClock), and trio's own
where ``time.perf_counter`` is patched.

1. A scope ends at its deadline by the run's clock or by the kernel's, whichever comes first.
2. The first is trio's affair. For the second a timer is set on the run's ring, but only if trio is
   about to sleep past a deadline. So where the run's clock is the kernel's there is no timer, and a
   run over other streams needs no ring.
3. Where there is no ring to be had, or it has failed, the run does not sleep instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from .._clock import now

if TYPE_CHECKING:
    from .._engine.request import Request
    from .._engine.ring import Ring
    from .._interfaces import Driver

__all__ = ["Deadlines"]

#: Seconds by which trio may sleep past a deadline: its own arithmetic, and the time since it.
TOLERANCE = 0.05


class Deadlines:
    """The deadlines of what a run waits for at present."""

    __slots__ = ("_not_before", "_timer", "_timer_at", "scopes")

    def __init__(self) -> None:
        self.scopes: dict[trio.CancelScope, float] = {}
        self._not_before = math.inf  # no deadline is before that
        self._timer: Request | None = None
        self._timer_at = 0.0

    @contextmanager
    def move_on_at(self, deadline: float) -> Iterator[trio.CancelScope]:
        """As trio.move_on_at(), with a time of _clock.now()."""
        with self.move_on_after(deadline - now()) as scope:
            yield scope

    @contextmanager
    def move_on_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        """As trio.move_on_after()."""
        scope = trio.CancelScope()
        self.end_after(scope, seconds)
        try:
            with scope:
                yield scope
        finally:
            self.forget(scope)

    def end_after(self, scope: trio.CancelScope, seconds: float) -> None:
        """Have the scope end so long from now, unless it is forgotten before."""
        scope.deadline = trio.current_time() + seconds
        deadline = self.scopes[scope] = now() + seconds
        self._not_before = min(self._not_before, deadline)

    def forget(self, scope: trio.CancelScope) -> None:
        """It was left."""
        self.scopes.pop(scope, None)

    def before_sleep(self, timeout: float, driver: Driver) -> bool:
        """Have trio woken at the nearest deadline, if it would sleep past it. For runs in which
        something has a deadline.

        Returns:
          False if it must not sleep at all (rule 3).
        """
        latest = now() + timeout - TOLERANCE
        if latest <= self._not_before:
            return True
        self._forget_cancelled()
        if latest <= self._not_before:
            return True
        try:
            self._set_timer(driver.ring, self._not_before)
        except Exception:
            self._expire()
            return False
        return True

    def _forget_cancelled(self) -> None:
        """Their deadlines have done what they are for."""
        for scope in [scope for scope in self.scopes if scope.cancel_called]:
            del self.scopes[scope]
        self._not_before = min(self.scopes.values(), default=math.inf)

    def _set_timer(self, ring: Ring, deadline: float) -> None:
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            ring.cancel(self._timer)
        self._timer = ring.timer(deadline, on_done=self._end_timer)
        self._timer_at = deadline

    def _end_timer(self, timer: Request) -> None:
        if timer is self._timer:
            self._timer = None
        self._expire()

    def _expire(self) -> None:
        time = now()
        for scope, deadline in list(self.scopes.items()):
            if deadline <= time:
                del self.scopes[scope]
                scope.cancel()
