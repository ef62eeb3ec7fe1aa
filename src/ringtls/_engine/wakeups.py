"""Whether this kernel signals a ring's eventfd more than once.

An event loop sleeps until the ring's eventfd is readable. Some kernels signal it for the first
completion and never again (Debian 13's 6.12.117 and 6.12.118): they defer a signal that is raised
inside a wake-up handler, and never clear the flag that says one is deferred. The fix is "io_uring/
eventfd: reset deferred signal state". On such a kernel the loop would sleep for ever over waiting
completions. Only rings with DEFER_TASKRUN are affected. In a cooperative ring the kernel wakes the
thread, the thread runs the work, and that signals the eventfd.

1. Kernels are judged by what they do, not by their version: distributions fix and break them
   under the same number.
2. The probe runs once per process, when the first ring for an event loop is opened.
3. A late signal counts as missing. The cooperative ring that follows is slower, and correct.
4. A plain thread waits in the ring itself and needs no eventfd.
5. A ring on epoll has no such eventfd. It passes the probe: the loop sleeps on epoll's descriptor.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import cache

from .._errors import RingUnavailableError
from .availability import unavailable
from .ring import Ring

__all__ = ["PATIENCE_MS", "open_for_event_loop", "signals_again", "wakes_event_loops"]

#: Milliseconds in which a signal must come. It may have to wait for an RCU grace period.
PATIENCE_MS = 100


def open_for_event_loop(wakeup_fd: int) -> Ring:
    """A ring of which each completion makes ``sleep_fd`` readable, once armed.

    Raises:
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left; the
        text says what to change.
    """
    try:
        return Ring(wakeup_fd=wakeup_fd, cooperative=not wakes_event_loops())
    except RingUnavailableError:
        raise
    except OSError as error:  # the probe needs descriptors of its own
        raise unavailable(error.errno or 0, "a ring") from error


@cache
def wakes_event_loops() -> bool:
    """False if a ring for an event loop must be cooperative here.

    Raises:
      RingUnavailableError: io_uring is forced and there is none here; the text says what to change.
      OSError: no descriptor is left.
    """
    return signals_again(_becomes_readable)


def signals_again(is_signalled: Callable[[int], bool]) -> bool:
    """Have deferred work come twice, and see whether that was signalled each time.

    Args:
      is_signalled: waits until a descriptor is readable; False if that does not happen.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ring = Ring(buffers=1, buffer_size=4096, sq_entries=8)
        try:
            return all(_is_woken(ring, ours, theirs, is_signalled) for _ in range(2))
        finally:
            ring.close(timeout=1.0)


def _is_woken(
    ring: Ring, ours: socket.socket, theirs: socket.socket, is_signalled: Callable[[int], bool]
) -> bool:
    request = ring.recv(ours.fileno(), 1)
    ring.submit()
    ring.arm()
    theirs.send(b"x")
    if not is_signalled(ring.sleep_fd):
        return False
    ring.clear()
    ring.reap()
    return request.is_over


def _becomes_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(PATIENCE_MS))
