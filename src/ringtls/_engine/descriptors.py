"""What a descriptor tells of its connection, and how to end that at once, without a ring."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios

from .extension import lib as _lib

__all__ = ["close_now", "is_delivered", "is_gone", "reset_connection", "unacknowledged"]


def unacknowledged(fd: int) -> int:
    """Bytes that were sent, and that the peer's TCP has not acknowledged (SIOCOUTQ, tcp(7)); of a
    local socket, the memory of those that the peer has not received."""
    count = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except OSError:  # not a connection that knows of it
        return 0
    return int.from_bytes(count, sys.byteorder)


def is_gone(fd: int) -> bool:
    """True if the connection was reset: the kernel goes on to count what was sent as not
    acknowledged."""
    look = select.poll()
    look.register(fd, 0)
    return bool(look.poll(0))


def is_delivered(fd: int) -> bool:
    """True if the peer's TCP has acknowledged all that was sent, or never will."""
    return is_gone(fd) or not unacknowledged(fd)


def reset_connection(fd: int) -> None:
    """End the connection at once, by RST where the protocol has it.

    Raises:
      OSError: the socket can't be reset, as when it is not connected.
    """
    result = _lib.rtl_reset(fd)
    if result < 0:
        raise OSError(-result, f"reset of fd {fd}: {os.strerror(-result)}")


def close_now(fd: int) -> None:
    """Close a descriptor. The SO_LINGER that its owner set does not make this wait."""
    _lib.rtl_close_now(fd)
