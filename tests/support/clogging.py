"""Connections that take no more until their peer reads: by arithmetic, not by waiting a while.

A connection whose buffers are set to SMALL holds less than NARROW bytes. The kernel doubles what
it is asked for, on both sides (socket(7)), and the last segment may exceed the send buffer.
"""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress
from typing import Any

import pytest

from ringtls import SocketStream, TlsStream
from ringtls._engine.ring import BUFFER_SIZE, BUFFERS
from ringtls._streams import tls as _tls
from ringtls._transports.base import HIGH_WATER, INPUT_LIMIT

from .waiting import until

__all__ = [
    "ACCEPTED",
    "AHEAD_IN_THE_RING",
    "NARROW",
    "SMALL",
    "clog",
    "clog_socket",
    "is_full",
    "let_both_clog",
]

SMALL = 32768
NARROW = 4 * SMALL + 65536

#: What a stream over a narrow connection accepts without waiting, and can't send at once. With
#: TLS's overhead it stays below the high-water mark.
ACCEPTED = HIGH_WATER - 8192

#: Bytes that a stream may receive ahead on the ring.
AHEAD_IN_THE_RING = INPUT_LIMIT + BUFFERS * BUFFER_SIZE

#: Where these are in struct tcp_info of linux/tcp.h: how often what was sent last was sent again,
#: and how much the peer still takes.
_RETRANSMITS = 2
_SEND_WINDOW = 228


async def clog(stream: TlsStream[Any]) -> None:
    """Have a stream over a narrow connection accept so much that the next send waits.

    It does not wait itself. What the kernel takes of it leaves more than the high-water mark.
    """
    assert ACCEPTED + _tls.PIECE - NARROW > HIGH_WATER
    await stream.send_all(bytes(ACCEPTED))
    await stream.send_all(bytes(_tls.PIECE))


def let_both_clog(monkeypatch: pytest.MonkeyPatch, *, ahead: int = INPUT_LIMIT) -> None:
    """Have ``clog`` do it where the peer is a stream of ours too: that one receives ahead.

    On the ring AHEAD_IN_THE_RING: all that the pool has may come before the receive is
    cancelled, as on Linux 6.1.
    """
    monkeypatch.setattr(_tls, "PIECE", 4 * NARROW + ahead)


def is_full(sock: Any) -> bool:
    """True if the kernel takes no more for a socket, and moves none of what it has, before the
    peer reads.

    The peer of a socket with little room may have said that it takes more, and drop it: Linux
    6.1 does, and never says so.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEND_WINDOW + 4)
    (window,) = struct.unpack_from("I", info, _SEND_WINDOW)
    is_stuck = window == 0 or info[_RETRANSMITS] > 0
    return is_stuck and not select.select([], [sock], [], 0)[1]


async def clog_socket(stream: SocketStream) -> None:
    """Fill the kernel's buffers."""

    def is_filled() -> bool:
        with suppress(BlockingIOError):
            while True:
                stream.socket.send(bytes(65536), socket.MSG_DONTWAIT)
        return is_full(stream.socket)

    await until(is_filled)
