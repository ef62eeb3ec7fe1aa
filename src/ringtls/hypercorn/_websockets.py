"""What hypercorn's WebSockets leave open at an end."""

from __future__ import annotations

from typing import Any

from hypercorn.protocol.ws_stream import WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.frame_protocol import CloseReason

__all__ = ["close"]


def close(stream: Any) -> bytes:
    """Close (RFC 6455, section 7.4.1: 1001, going away), if this is a WebSocket that is open."""
    if not isinstance(stream, WSStream) or not stream.handshake.accepted:
        return b""
    if stream.connection.state is not ConnectionState.OPEN:
        return b""
    return stream.connection.send(CloseConnection(code=CloseReason.GOING_AWAY))
