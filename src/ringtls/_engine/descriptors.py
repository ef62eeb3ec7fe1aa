"""What a descriptor tells of its connection, and how to end that at once, without a ring."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import termios

from .extension import lib as _lib

__all__ = ["close_now", "is_delivered", "is_gone", "reset_connection", "unacknowledged"]

#: A state of the kernel's TCP (net/tcp_states.h), the first byte of what TCP_INFO tells.
TCP_CLOSE = b"\x07"


def unacknowledged(fd: int) -> int:
    """Bytes that were sent, and that the peer's TCP has not acknowledged (SIOCOUTQ, tcp(7)); of a
    local socket, the memory of those that the peer has not received. None of a closed one."""
    count = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except (OSError, ValueError):  # not a connection that knows of it, or closed
        return 0
    return int.from_bytes(count, sys.byteorder)


def is_gone(fd: int) -> bool:
    """True if the connection was reset: the kernel goes on to count what was sent as not
    acknowledged. Or if it is closed."""
    if fd < 0:
        return True
    look = select.poll()
    look.register(fd, 0)
    try:
        return bool(look.poll(0))
    except OSError:  # where RLIMIT_NOFILE is 0: a sandbox can forbid new descriptors so
        return _is_closed(fd)


def _is_closed(fd: int) -> bool:
    """True if its TCP, if it is TCP's, has no connection (tcp(7))."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == TCP_CLOSE
    except OSError:
        return False
    finally:
        sock.detach()


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
