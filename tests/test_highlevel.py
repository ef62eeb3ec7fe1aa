"""The twins of trio's helpers, and what a listener tells of where it listens."""

from __future__ import annotations

import errno
import math
import socket
import ssl
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ringtls import (
    SocketListener,
    SocketStream,
    TlsListener,
    TlsStream,
    open_tcp_listeners,
    open_tcp_stream,
    open_tls_over_tcp_listeners,
    open_tls_over_tcp_stream,
    open_unix_listeners,
    open_unix_socket,
    serve_tcp,
    serve_tls_over_tcp,
    statistics,
)
from ringtls import _highlevel as highlevel

from .conftest import Contexts
from .support.peer import Peer
from .support.waiting import until


async def echo(stream: SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def test_serve_tcp() -> None:
    async with trio.open_nursery() as nursery:
        listeners: list[SocketListener] = await nursery.start(
            partial(serve_tcp, echo, 0, host="127.0.0.1")
        )
        [listener] = listeners
        client = await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
            await client.send_eof()
            assert await client.receive_some() == b""  # the handler has returned
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_serve_tcp_closes_what_the_handler_leaves() -> None:
    async def leave(stream: SocketStream) -> None:
        raise_in = await stream.receive_some()
        raise RuntimeError(raise_in.decode())

    async with trio.open_nursery() as nursery:
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as handlers:
                serving = partial(serve_tcp, leave, 0, host="127.0.0.1", handler_nursery=handlers)
                [listener] = await nursery.start(serving)
                client = await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
                await client.send_all(b"bad")
        assert caught.group_contains(RuntimeError, match="bad")
        assert await client.receive_some() == b""
        await client.aclose()
        nursery.cancel_scope.cancel()


def backlog_of(listener: socket.socket) -> int:
    """What tcp(7) says of a listening socket in place of tcpi_sacked."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    [backlog] = struct.unpack_from("I", info, 28)
    return int(backlog)


async def test_the_options_of_serve_tls_over_tcp(contexts: Contexts) -> None:
    received = []

    async def receive(stream: TlsStream) -> None:
        received.append(await stream.receive_some())

    serve = partial(serve_tls_over_tcp, receive, 0, contexts.server, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        listeners: list[TlsListener] = await nursery.start(
            partial(serve, https_compatible=True, backlog=7)
        )
        assert backlog_of(listeners[0].socket) == 7  # type: ignore[arg-type]
        address = "127.0.0.1", listeners[0].port
        peer = Peer(socket.create_connection(address), contexts, server_side=False)
        await trio.to_thread.run_sync(peer.handshake)
        peer.sock.shutdown(socket.SHUT_WR)
        assert (await trio.to_thread.run_sync(peer.end)).is_clean
        nursery.cancel_scope.cancel()
    assert received == [b""]


async def test_open_tcp_listeners() -> None:
    [listener] = await open_tcp_listeners(0, host="127.0.0.1", backlog=7)
    async with listener:
        assert backlog_of(listener.socket) == 7
        port = listener.socket.getsockname()[1]
        client = await open_tcp_stream("127.0.0.1", port)
        server = await listener.accept()
        assert isinstance(server, SocketStream)
        with pytest.raises(OSError, match="in use"):
            await open_tcp_listeners(port, host="127.0.0.1")
        await client.aclose()
        await server.aclose()


async def test_no_listener_is_left_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]
    opened: list[SocketListener] = []

    async def open_both(port: int, **options: object) -> list[trio.SocketListener]:
        return both

    def take(sock: trio.socket.SocketType) -> SocketListener:
        if opened:
            raise OSError(errno.EMFILE, "no descriptor is left")
        opened.append(SocketListener(sock))
        return opened[0]

    monkeypatch.setattr(trio, "open_tcp_listeners", open_both)
    monkeypatch.setattr(highlevel, "SocketListener", take)
    with pytest.raises(OSError, match="no descriptor"):
        await open_tcp_listeners(0)
    assert [listener.socket.fileno() for listener in both] == [-1, -1]
    with pytest.raises(trio.ClosedResourceError):
        await opened[0].accept()


async def test_no_listener_is_left_if_the_context_does_not_fit(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it warn of one that nobody could close."""
    opened: list[SocketListener] = []

    async def open_and_keep(port: int, **options: Any) -> list[SocketListener]:
        opened.extend(await open_tcp_listeners(port, **options))
        return opened

    monkeypatch.setattr(highlevel, "open_tcp_listeners", open_and_keep)
    with pytest.raises(ValueError, match="for clients"):
        await open_tls_over_tcp_listeners(0, contexts.client, host="127.0.0.1")
    await until(lambda: opened[0].socket.fileno() == -1)  # in the background


async def test_no_stream_is_left_if_the_context_does_not_fit(contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ssl.SSLError, match="SERVER"):
            await open_tls_over_tcp_stream("127.0.0.1", port, ssl_context=contexts.server)
    assert statistics().orphans_adopted == statistics().connections_open == 0


async def test_unix(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    [listener] = await open_unix_listeners(path)
    async with listener:
        client = await open_unix_socket(path)
        server = await listener.accept()
        await client.send_all(b"hello")
        assert await server.receive_some() == b"hello"
        await server.aclose()
        assert await client.receive_some() == b""
        await client.aclose()
    with pytest.raises(OSError, match="in use") as caught:
        await open_unix_listeners(path)
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):
        await open_unix_socket(path)


@pytest.mark.parametrize("convert", [str, lambda path: str(path).encode()], ids=["str", "bytes"])
async def test_a_unix_path_of_any_kind(tmp_path: Path, convert: type[str]) -> None:
    path = convert(tmp_path / "socket")
    [listener] = await open_unix_listeners(path, backlog=1)
    client = await open_unix_socket(path)
    await client.aclose()
    await listener.aclose()


async def test_the_backlog_of_a_unix_socket(tmp_path: Path) -> None:
    """unix(7): connect(2) answers EAGAIN to who does not wait."""
    [listener] = await open_unix_listeners(tmp_path / "socket", backlog=1)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        waiting = []
        for sock in first, second:
            sock.setblocking(False)
            waiting.append(sock.connect_ex(str(tmp_path / "socket")))
        with socket.socket(socket.AF_UNIX) as third:
            third.setblocking(False)
            waiting.append(third.connect_ex(str(tmp_path / "socket")))
    assert waiting == [0, 0, errno.EAGAIN]
    await listener.aclose()


async def test_where_a_tls_listener_listens(contexts: Contexts, tmp_path: Path) -> None:
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    assert listener.socket.getsockname() == ("127.0.0.1", listener.port)
    await listener.aclose()
    below = await trio.open_tcp_listeners(0, host="127.0.0.1")
    over_trios: TlsListener[trio.SocketStream] = TlsListener(below[0], contexts.server)
    assert over_trios.socket is below[0].socket
    assert over_trios.port == below[0].socket.getsockname()[1]
    await over_trios.aclose()
    [at_path] = await open_unix_listeners(tmp_path / "socket")
    async with TlsListener(at_path, contexts.server) as listener:
        with pytest.raises(AttributeError, match=f"it listens at '{tmp_path}/socket'"):
            _ = listener.port


@pytest.mark.parametrize("seconds", [-1, math.nan, 10**400, "1"])
async def test_a_tls_listener_refuses_what_no_connection_could_have(
    contexts: Contexts, seconds: float
) -> None:
    """At once, and not at the first connection, which would end a server."""
    [below] = await open_tcp_listeners(0, host="127.0.0.1")
    async with below:
        with pytest.raises((TypeError, ValueError)):
            TlsListener(below, contexts.server, shutdown_timeout=seconds)
        with pytest.raises(ValueError, match="for clients"):
            TlsListener(below, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        TlsListener(below, contexts.server, shutdown_timeout=math.inf)


async def test_c1_over_a_unix_socket(contexts: Contexts, tmp_path: Path) -> None:
    [below] = await open_unix_listeners(tmp_path / "socket")
    async with TlsListener(below, contexts.server) as listener, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as stream:
                await stream.send_all(await stream.receive_some())

        nursery.start_soon(serve)
        client = await open_unix_socket(tmp_path / "socket")
        async with TlsStream(client, contexts.client, server_hostname="localhost") as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            assert await stream.receive_some() == b""  # a clean end
    await until(lambda: not statistics().connections_closing)
