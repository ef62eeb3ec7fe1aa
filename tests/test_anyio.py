"""ringtls.anyio: what holds of anyio's own streams holds of ours."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import trio
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import (
    CloseOutcome,
    TlsListener,
    TlsStream,
    open_tcp_listeners,
    open_tls_over_tcp_listeners,
    open_unix_listeners,
    open_unix_socket,
)
from ringtls.anyio import ByteStream, RingAttribute, connect_tcp, wrap_listener, wrap_stream

from .conftest import Contexts
from .support.peer import Meet, Peer, meet, trio_socket_stream
from .support.streams import refusing_port, reset, tcp_pair
from .support.waiting import cut_off


async def echo(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


@asynccontextmanager
async def serving(
    listener: Any, handler: Callable[[ByteStream], Any] = echo, **options: float
) -> AsyncIterator[int]:
    """Serve with anyio's interface. The value is the port."""
    wrapped = wrap_listener(listener, **options)
    async with wrapped, anyio.create_task_group() as group:
        group.start_soon(wrapped.serve, handler)
        yield wrapped.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


@asynccontextmanager
async def tls_server(
    contexts: Contexts, handler: Callable[[ByteStream], Any] = echo, **options: float
) -> AsyncIterator[int]:
    [listener] = await open_tls_over_tcp_listeners(0, contexts.server, host="127.0.0.1")
    async with serving(listener, handler, **options) as port:
        yield port


connect = partial(connect_tcp, "127.0.0.1", tls_hostname="localhost")


async def test_tls_both_ways(contexts: Contexts) -> None:
    async with tls_server(contexts) as port:
        async with await connect(port, ssl_context=contexts.client) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            await stream.send_eof()
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        below = stream.extra(RingAttribute.stream)
        assert isinstance(below, TlsStream)
        assert below.close_outcome is CloseOutcome.CLEAN


async def test_plain_both_ways() -> None:
    [listener] = await open_tcp_listeners(0, host="127.0.0.1")
    async with (
        serving(listener) as port,
        await connect_tcp("127.0.0.1", port, local_host="127.0.0.1") as stream,
    ):
        await stream.send(b"hello")
        reader = BufferedByteReceiveStream(stream)
        assert await reader.receive_exactly(3) == b"hel"
        assert await reader.receive_exactly(2) == b"lo"
        await stream.send_eof()
        assert [data async for data in stream] == []


@pytest.mark.skipif(
    "local_port" not in signature(anyio.connect_tcp).parameters, reason="anyio is older than 4.16"
)
async def test_a_port_to_connect_from(contexts: Contexts) -> None:
    """The server's, at another address: nobody else has it there."""
    async with (
        tls_server(contexts) as port,
        await connect(
            port, ssl_context=contexts.client, local_host="127.0.0.77", local_port=port
        ) as stream,
    ):
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        assert stream.extra(SocketAttribute.local_address) == ("127.0.0.77", port)
        with pytest.raises(ConnectionRefusedError, match="itself"):
            await connect_tcp("127.0.0.78", port, local_host="127.0.0.78", local_port=port)


#: What differs between two connections of the same kind.
OF_ONE_CONNECTION = {
    RingAttribute.stream,
    SocketAttribute.local_address,
    SocketAttribute.local_port,
    SocketAttribute.raw_socket,
    TLSAttribute.channel_binding_tls_unique,
    TLSAttribute.ssl_object,
}


async def test_the_attributes_are_anyios(versioned_contexts: Contexts) -> None:
    context = versioned_contexts.client
    async with tls_server(versioned_contexts) as port:
        theirs: Any = await anyio.connect_tcp(
            "127.0.0.1", port, ssl_context=context, tls_hostname="localhost"
        )
        async with theirs, await connect(port, ssl_context=context) as ours:
            known = ours.extra_attributes
            assert known.keys() == theirs.extra_attributes.keys() | {RingAttribute.stream}
            for key in known.keys() - OF_ONE_CONNECTION:
                assert known[key]() == theirs.extra(key), key
            raw = ours.extra(SocketAttribute.raw_socket)
            assert ours.extra(SocketAttribute.local_address) == raw.getsockname()
            assert ours.extra(SocketAttribute.local_port) == raw.getsockname()[1]
            below: Any = ours.extra(RingAttribute.stream)
            ssl_object = ours.extra(TLSAttribute.ssl_object)
            assert isinstance(ssl_object, ssl.SSLObject)
            assert ssl_object.cipher() == below.cipher()
            unique = ours.extra(TLSAttribute.channel_binding_tls_unique)
            assert unique == below.get_channel_binding()


async def test_the_attributes_of_a_server(contexts: Contexts) -> None:
    seen: list[tuple[object, ...]] = []

    async def look(stream: ByteStream) -> None:
        async with stream:
            seen.append(
                (
                    stream.extra(SocketAttribute.remote_address),
                    stream.extra(TLSAttribute.server_side),
                    stream.extra(TLSAttribute.peer_certificate),
                    bool(stream.extra(TLSAttribute.shared_ciphers)),
                )
            )

    async with (
        tls_server(contexts, look) as port,
        await connect(port, ssl_context=contexts.client) as stream,
    ):
        local = stream.extra(SocketAttribute.local_address)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert seen == [(local, True, None, True)]


async def test_what_only_the_handshake_can_tell(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, server_side=False, handshake=False)
    wrapped = wrap_stream(stream)
    assert wrapped.extra(TLSAttribute.server_side) is False
    assert wrapped.extra(TLSAttribute.cipher, None) is None
    with pytest.raises(anyio.TypedAttributeLookupError):
        wrapped.extra(TLSAttribute.tls_version)
    await wrapped.aclose()
    peer.sock.close()


async def test_attributes_over_other_streams(contexts: Contexts, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    [listener] = await open_unix_listeners(path)
    listening = wrap_listener(listener)
    assert listening.extra(SocketAttribute.local_address) == str(path)
    client, server = await open_unix_socket(path), await listener.accept()
    wrapped = wrap_stream(client)
    assert wrapped.extra(SocketAttribute.remote_address) == str(path)
    assert wrapped.extra(SocketAttribute.family) is socket.AF_UNIX
    assert wrapped.extra(SocketAttribute.remote_port, None) is None
    for resource in wrapped, server, listening:
        await resource.aclose()

    ours, theirs = tcp_pair()  # trio's stream, whose connection is on the ring
    over_trios = TlsStream(trio_socket_stream(ours), contexts.server, server_side=True)
    async with wrap_stream(over_trios) as wrapped:
        assert wrapped.extra(SocketAttribute.remote_address) == theirs.getsockname()
        assert isinstance(wrapped.extra(SocketAttribute.raw_socket), socket.socket)
    theirs.close()

    one, other = trio.testing.memory_stream_pair()
    async with wrap_stream(TlsStream(one, contexts.server, server_side=True)) as wrapped:
        assert wrapped.extra(SocketAttribute.family, None) is None
        assert wrapped.extra(TLSAttribute.server_side)
    await other.aclose()


async def test_the_attributes_of_listeners(contexts: Contexts) -> None:
    [listener] = await open_tls_over_tcp_listeners(
        0, contexts.server, host="127.0.0.1", https_compatible=True
    )
    async with wrap_listener(listener) as wrapped:
        assert wrapped.extra(SocketAttribute.local_address) == ("127.0.0.1", listener.port)
        assert wrapped.extra(SocketAttribute.remote_address, None) is None
        assert wrapped.extra(TLSAttribute.standard_compatible) is False
    [below] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with wrap_listener(TlsListener(below, contexts.server)) as wrapped:
        assert wrapped.extra_attributes.keys() == {TLSAttribute.standard_compatible}


async def test_the_errors_are_anyios(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    wrapped = wrap_stream(stream)
    with pytest.raises(ValueError, match="max_bytes"):
        await wrapped.receive(0)

    async def receive() -> None:
        with pytest.raises(anyio.ClosedResourceError, match="closed"):
            await wrapped.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await wrapped.receive()
        await wrapped.aclose()
    await wrapped.aclose()
    for call in (wrapped.receive, wrapped.send_eof, partial(wrapped.send, b"x")):
        with pytest.raises(anyio.ClosedResourceError):
            await call()
    peer.sock.close()


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_an_end_that_is_none(contexts: Contexts, how: str) -> None:
    stream, peer = await meet(contexts)
    async with wrap_stream(stream) as wrapped:
        if how == "FIN":
            peer.sock.shutdown(socket.SHUT_WR)
        else:
            reset(peer.sock)
        expected = "without close_notify" if how == "FIN" else "the connection broke"
        with pytest.raises(anyio.BrokenResourceError, match=expected) as caught:
            await wrapped.receive()
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    peer.sock.close()


@pytest.mark.parametrize("standard", [True, False])
async def test_whether_an_end_without_close_notify_is_one(
    contexts: Contexts, standard: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer = Peer(listener.accept()[0], contexts, server_side=True)
            peer.handshake()
            peer.sock.shutdown(socket.SHUT_WR)
            assert peer.end().is_clean

        port = listener.getsockname()[1]
        over_tls = partial(connect, port, ssl_context=contexts.client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, serve)
            async with await over_tls(tls_standard_compatible=standard) as stream:
                with pytest.raises(anyio.BrokenResourceError if standard else anyio.EndOfStream):
                    await stream.receive()


async def test_c2_aclose_forcefully_is_an_orderly_end(contexts: Contexts, meet: Meet) -> None:
    stream, peer = await meet(contexts)
    wrapped = wrap_stream(stream)
    await wrapped.send(b"last words")
    await anyio.aclose_forcefully(wrapped)
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"last words"


async def test_c7_a_cancelled_receive_leaves_the_stream_usable(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    async with wrap_stream(stream) as wrapped:
        await cut_off(wrapped.receive)
        peer.send(b"x")
        assert await wrapped.receive() == b"x"
    assert (await in_thread(peer.end)).is_clean


async def test_c21_an_exception_breaks_off_where_that_was_asked_for(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    with pytest.raises(RuntimeError, match="half an answer"):
        async with wrap_stream(stream):
            raise RuntimeError("half an answer")
    assert stream.close_outcome is CloseOutcome.BROKEN_OFF
    assert not (await in_thread(peer.end)).is_clean


async def test_connections_that_fail(contexts: Contexts) -> None:
    with refusing_port() as port, pytest.raises(OSError, match="all attempts"):
        await connect_tcp("127.0.0.1", port)
    for host in ("no..name", f"{'x' * 64}.example"):
        with pytest.raises(socket.gaierror):
            await connect_tcp(host, port)
    async with tls_server(contexts) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port)  # the default context does not trust it
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect_tcp(
                "127.0.0.1", port, ssl_context=contexts.client, tls_hostname="example.org"
            )
        with pytest.raises(ssl.SSLError, match="Cannot create a client"):
            await connect_tcp("127.0.0.1", port, ssl_context=contexts.server, tls=True)
    [listener] = await open_tcp_listeners(0, host="127.0.0.1")

    async def hang_up(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()

    async with serving(listener, hang_up) as port:
        with pytest.raises(anyio.BrokenResourceError):
            await connect(port, ssl_context=contexts.client)


async def test_a_failed_handshake_never_gets_to_the_handler(
    contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ringtls")
    called: list[ByteStream] = []

    async def handler(stream: ByteStream) -> None:
        called.append(stream)
        await echo(stream)

    async with tls_server(contexts, handler) as port:
        async with await connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(anyio.EndOfStream):
                while True:
                    await stream.receive()  # perhaps an alert
        assert not called
        assert "a handshake failed: TLS failed: " in caplog.text
        async with await connect(port, ssl_context=contexts.client) as stream:
            await stream.send(b"x")
            assert await stream.receive() == b"x"
    assert len(called) == 1


async def test_a_handshake_takes_too_long(
    contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "ringtls")
    async with (
        tls_server(contexts, handshake_timeout=0.0) as port,
        await connect_tcp("127.0.0.1", port) as stream,
    ):
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert "a handshake failed: it took too long" in caplog.text
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]  # it was silent


@pytest.mark.parametrize("seconds", [-1, math.nan, 10**400, "1"])
async def test_a_handshake_timeout_that_is_none_is_refused_at_once(seconds: float) -> None:
    [listener] = await open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with pytest.raises((TypeError, ValueError)):
            wrap_listener(listener, handshake_timeout=seconds)


async def test_serving_in_a_group_of_the_callers(contexts: Contexts) -> None:
    [listener] = await open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    wrapped = wrap_listener(listener)
    async with anyio.create_task_group() as handlers:
        async with anyio.create_task_group() as servers:
            servers.start_soon(wrapped.serve, echo, handlers)
            stream = await connect_tcp("127.0.0.1", port)
            await stream.send(b"before")
            assert await stream.receive() == b"before"
            servers.cancel_scope.cancel()
        await wrapped.aclose()
        await stream.send(b"after")
        assert await stream.receive() == b"after"
        await stream.aclose()
    async with anyio.create_task_group() as handlers:
        with pytest.raises(anyio.ClosedResourceError):
            await wrapped.serve(echo, handlers)


async def test_only_ringtls_own_streams() -> None:
    one, other = trio.testing.memory_stream_pair()
    with pytest.raises(TypeError, match="SocketStream or TlsStream of ringtls"):
        wrap_stream(one)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="listener of ringtls"):
        wrap_listener(other)  # type: ignore[arg-type]


def test_on_another_backend_one_clear_error() -> None:
    def main() -> Any:
        return connect_tcp("127.0.0.1", 1)

    with pytest.raises(RuntimeError, match=r"anyio.run\(..., backend='trio'\)"):
        asyncio.run(main())


def test_without_anyio_one_clear_error() -> None:
    code = """if True:
        import sys
        sys.modules["anyio"] = None
        try:
            import ringtls.anyio
        except ModuleNotFoundError as error:
            print(error.name, error)
        """
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert shown.stdout == "anyio ringtls.anyio needs anyio: pip install 'ringtls[anyio]'\n"
