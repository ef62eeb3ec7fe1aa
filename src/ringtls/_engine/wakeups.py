"""Whether this kernel signals a ring's eventfd at once, each time.

An event loop sleeps until the ring's eventfd is readable. Kernels with the patch "io_uring: defer
eventfd signaling when queued from a wakeup handler" signal it an RCU grace period later, which is
some milliseconds for each time that the loop sleeps (seen on Linux 7.2.13). Those that have it
without its later fix "io_uring/eventfd: reset deferred signal state" do so for the first completion
and never again (Debian 13's 6.12.117 and 6.12.118): a loop would sleep for ever over waiting
completions. Only rings with DEFER_TASKRUN are affected. In a cooperative ring the kernel wakes the
thread, the thread runs the work, and that signals the eventfd.

1. Kernels are judged by what they do, not by their version: distributions fix and break them
   under the same number.
2. The probe runs once per process, when the first ring for an event loop is opened.
3. What was sent into a socket pair is signalled when send(2) returns, or it is late: so the probe
   does not wait. The cooperative ring that follows costs some more, and is never late.
4. A plain thread waits in the ring itself and needs no eventfd.
5. A ring on epoll has no such eventfd. It passes the probe: the loop sleeps on epoll's descriptor.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from functools import cache, partial

from .._errors import RingUnavailableError
from .availability import unavailable
from .ring import Ring

__all__ = ["open_for_event_loop", "signals_at_once", "wakes_event_loops"]


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
    return signals_at_once(_is_readable)


def signals_at_once(is_signalled: Callable[[int], bool]) -> bool:
    """Have deferred work come twice, and see whether that was signalled each time.

    Args:
      is_signalled: whether a descriptor is readable.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ring = Ring(buffers=1, buffer_size=4096, sq_entries=8)
        try:
            is_woken = partial(_is_woken, ring, ours, theirs, is_signalled)
            return is_woken() and is_woken()
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


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
