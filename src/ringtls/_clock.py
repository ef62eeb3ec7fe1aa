"""The clock of all deadlines of connections: the kernel's, as the engine has it (csrc/clock.c).

Programs have other clocks in their tests. trio.testing.MockClock stands still, and unittest.mock,
freezegun and time-machine replace ``time.monotonic``. An end must be bounded there as well (rule
C3). So the modules of ringtls ask this one, which is bound when it is imported; time-machine, which
replaces functions themselves, leaves clock_gettime(2) alone but for CLOCK_REALTIME.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

__all__ = ["now"]

#: Seconds, as ``time.monotonic()`` returns them where nobody has patched it.
now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
