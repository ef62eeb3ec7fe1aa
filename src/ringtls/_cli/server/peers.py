"""What the kernel knows of a connection's peer: tcp(7), unix(7), struct tcp_info of linux/tcp.h."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from ringtls._engine.descriptors import unacknowledged

if TYPE_CHECKING:
    from ringtls import TlsStream

__all__ = ["taken_in"]

#: tcpi_bytes_acked.
_ACKNOWLEDGED = struct.Struct("120xQ")


def _acknowledged(sock: socket.socket) -> int | None:
    """How many bytes its peer has, SYN and FIN counted; None if it is not TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
    except OSError:
        return None
    (acknowledged,) = _ACKNOWLEDGED.unpack(info)
    return int(acknowledged)


def taken_in(stream: TlsStream) -> object:
    """Something that changes when the peer's kernel takes in what was sent.

    A local socket has no count of that: there it is what is left.
    """
    if stream.close_outcome is not None:
        return stream.close_outcome
    sock = stream.transport_stream.socket
    acknowledged = _acknowledged(sock)
    if acknowledged is not None:
        return acknowledged
    transport = stream._transport
    transport.has_unsent(transport.unsent)  # which updates it
    return transport.unsent, unacknowledged(sock.fileno())
