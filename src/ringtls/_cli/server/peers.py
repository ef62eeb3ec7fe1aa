"""What the kernel knows of a connection's peer: tcp(7), unix(7), struct tcp_info of linux/tcp.h."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from ringtls._engine.descriptors import unacknowledged

if TYPE_CHECKING:
    from ringtls import TlsStream

__all__ = ["bytes_received", "taken_in"]

#: tcpi_bytes_acked and tcpi_bytes_received. SYN and FIN count as bytes there.
_BYTES = struct.Struct("120xQQ")


def _byte_counts(sock: socket.socket) -> tuple[int, int] | None:
    """None if it is not TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size)
    except OSError:
        return None
    acknowledged, received = _BYTES.unpack(info)
    return acknowledged, received


def bytes_received(sock: socket.socket) -> int | None:
    """How many have come from the peer, its FIN counted as one; None if it is not TCP."""
    counts = _byte_counts(sock)
    return None if counts is None else counts[1]


def taken_in(stream: TlsStream) -> object:
    """Something that changes when the peer's kernel takes in what was sent.

    A local socket has no count of that: there it is what is left.
    """
    if stream.close_outcome is not None:
        return stream.close_outcome
    sock = stream.transport_stream.socket
    counts = _byte_counts(sock)
    if counts is not None:
        return counts[0]
    transport = stream._transport
    transport.has_unsent(transport.unsent)  # which updates it
    return transport.unsent, unacknowledged(sock.fileno())
