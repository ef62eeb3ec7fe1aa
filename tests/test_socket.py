"""SocketStream and SocketListener on a real ring and real sockets."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ringtls import SocketStream, blocking
from ringtls._transports import ring as _transport

from .support.clogging import clog_socket
from .support.streams import socket_streams, tcp_pair


async def clogged_socket_streams() -> tuple[SocketStream, SocketStream]:
    client, server = await socket_streams(buffer_size=16384)
    await clog_socket(client)
    await clog_socket(server)
    return client, server


async def test_trio_check_half_closeable_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    # The check sends to a closed stream, a hundred bytes at a time, until it notices.
    monkeypatch.setattr(_transport, "DISCARD_LIMIT", 1 << 16)
    await trio.testing.check_half_closeable_stream(socket_streams, clogged_socket_streams)


async def test_c13_a_socket_is_reset_on_purpose() -> None:
    ours, theirs = tcp_pair()
    stream = SocketStream(ours)
    with theirs:
        stream.close_unclean()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    await stream.aclose()


def test_c13_a_blocking_socket_is_reset_on_purpose() -> None:
    ours, theirs = tcp_pair()
    stream = blocking.SocketStream(ours)
    with theirs:
        stream.close_unclean()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    stream.close()
