"""Deadlines that hold in a trio run whatever its clock does (rule C3).

The clock of a run may stand still: that of a test does (trio.testing.MockClock), and trio's own
where ``time.perf_counter`` is patched.

1. A scope ends at its deadline by the run's clock or by the kernel's, whichever comes first.
2. The first is trio's affair. For the second a timer is set on the run's ring, but only if trio is
   about to sleep past a deadline. So where the run's clock is the kernel's there is no timer, and a
   run over other streams needs no ring.
3. Where there is no ring to be had, or it has failed, the run does not sleep instead.
4. Nobody says that a scope was left: it is known as long as somebody has it. A context manager
   around it, which would say so, would hold the Cancelled that it swallows in a reference cycle
   (CPython 3.13).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

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

    __slots__ = ("_scopes", "_timer", "_timer_at", "not_before")

    def __init__(self) -> None:
        self._scopes: WeakKeyDictionary[trio.CancelScope, float] = WeakKeyDictionary()
        self.not_before = math.inf  # no deadline is before that
        self._timer: Request | None = None
        self._timer_at = 0.0

    def move_on_at(self, deadline: float) -> trio.CancelScope:
        """As trio.move_on_at(), with a time of _clock.now()."""
        return self.move_on_after(deadline - now())

    def move_on_after(self, seconds: float) -> trio.CancelScope:
        """As trio.move_on_after()."""
        scope = trio.CancelScope()
        self.end_after(scope, seconds)
        return scope

    def end_after(self, scope: trio.CancelScope, seconds: float) -> None:
        """Have the scope end so long from now."""
        scope.deadline = trio.current_time() + seconds
        deadline = now() + seconds
        self.not_before = min(self.not_before, deadline)
        self._scopes[scope] = deadline

    def before_sleep(self, timeout: float, driver: Driver) -> bool:
        """Have trio woken at the nearest deadline, if it would sleep past it. There is none where
        ``not_before`` is infinite.

        Returns:
          False if it must not sleep at all (rule 3).
        """
        latest = now() + timeout - TOLERANCE
        if latest <= self.not_before:
            return True
        self._forget_cancelled()
        if latest <= self.not_before:
            return True
        try:
            self._set_timer(driver.ring, self.not_before)
        except Exception:
            self._expire()
            return False
        return True

    def _forget_cancelled(self) -> None:
        """Their deadlines have done what they are for."""
        for scope in [scope for scope in self._scopes if scope.cancel_called]:
            del self._scopes[scope]
        self.not_before = min(self._scopes.values(), default=math.inf)

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
        for scope, deadline in list(self._scopes.items()):
            if deadline <= time:
                del self._scopes[scope]
                scope.cancel()
