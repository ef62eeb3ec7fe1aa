"""Which engine moves the bytes: io_uring where this process can have one, else epoll.

1. Both keep all rules. io_uring takes fewer system calls; epoll is allowed everywhere.
2. The environment variable RINGTLS_ENGINE forces one. Forcing one that is not available is an
   error.
3. The first ring on epoll logs why it is not on io_uring: one record in a process, at level INFO,
   of the logger ``ringtls``.
4. The choice is made anew for each ring. Locked memory may be short when one is opened and
   sufficient when the next is, so the rings of one process may differ.
"""

from __future__ import annotations

import enum
import errno
import logging
import os

from .._errors import RingUnavailableError
from .._log import log

__all__ = ["VARIABLE", "Engine", "announce", "forced", "may_be_replaced"]

VARIABLE = "RINGTLS_ENGINE"


class Engine(enum.StrEnum):
    IO_URING = "io_uring"
    EPOLL = "epoll"


def forced() -> Engine | None:
    """What the environment asks for.

    Raises:
      ValueError: that is no engine.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        return Engine(name)
    except ValueError:
        known = " or ".join(Engine)
        raise ValueError(
            f"{VARIABLE} is {name!r}: set it to {known}, or unset it to have what works here"
        ) from None


def may_be_replaced(error: RingUnavailableError) -> bool:
    """True if epoll may do what io_uring could not, for this reason."""
    return error.errno not in (errno.EMFILE, errno.ENFILE)


def announce(reason: str) -> None:
    """Log, the first time, that it is epoll, and why."""
    global _is_announced
    if not _is_announced:
        _is_announced = True
        log(logging.INFO, "epoll is used: %s", reason)


_is_announced = False
