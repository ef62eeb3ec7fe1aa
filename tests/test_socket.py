"""SocketStream and SocketListener on a real ring and real sockets."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ringtls import SocketStream
from ringtls._transports import ring as _transport

from .support.clogging import clog_socket
from .support.streams import socket_streams


async def clogged_socket_streams() -> tuple[SocketStream, SocketStream]:
    client, server = await socket_streams(buffer_size=16384)
    await clog_socket(client)
    await clog_socket(server)
    return client, server


async def test_trio_check_half_closeable_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    # The check sends to a closed stream, a hundred bytes at a time, until it notices.
    monkeypatch.setattr(_transport, "DISCARD_LIMIT", 1 << 16)
    await trio.testing.check_half_closeable_stream(socket_streams, clogged_socket_streams)
