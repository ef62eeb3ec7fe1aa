"""TlsStream and TlsListener over the ring."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import ssl
import weakref
from functools import partial

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import (
    CloseOutcome,
    SocketStream,
    TlsListener,
    TlsStream,
    TruncationError,
    _accepting,
    open_tls_over_tcp_listeners,
    open_tls_over_tcp_stream,
    serve_tls_over_tcp,
    statistics,
)
from ringtls._streams.acceptor import Acceptor
from ringtls._streams.tls import PIECE
from ringtls._transports import ring as _transport
from ringtls._transports.base import HIGH_WATER

from .conftest import Contexts
from .support.clogging import ACCEPTED, AHEAD_IN_THE_RING, SMALL, clog, let_both_clog
from .support.peer import Peer, meet
from .support.streams import handshaken, socket_streams, tcp_pair, tls_over
from .support.waiting import cut_off, until


async def test_trio_check_half_closeable_stream(
    versioned_contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check sends to a closed stream, a hundred bytes at a time, until it notices.
    monkeypatch.setattr(_transport, "DISCARD_LIMIT", 1 << 16)
    let_both_clog(monkeypatch, ahead=AHEAD_IN_THE_RING)

    async def streams() -> tuple[TlsStream, TlsStream]:
        return await handshaken(versioned_contexts)

    async def clogged() -> tuple[TlsStream, TlsStream]:
        client, server = await handshaken(versioned_contexts, buffer_size=SMALL)
        for stream in (client, server):
            stream.shutdown_timeout = 0.1  # the check closes them one after the other
            await clog(stream)
        return client, server

    await trio.testing.check_half_closeable_stream(streams, clogged)


async def test_full_duplex(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    data = bytes(range(256)) * 8000

    async def send(stream: TlsStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(stream: TlsStream) -> None:
        received = bytearray()
        while piece := await stream.receive_some():
            received += piece
        assert received == data

    async with client, server, trio.open_nursery() as nursery:
        for stream in (client, server):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)


async def test_data_starts_the_handshake(contexts: Contexts) -> None:
    client, server = tls_over(*await socket_streams(), contexts)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"hello")
        assert await server.receive_some() == b"hello"


async def test_a_server_receives_before_a_task_asks(contexts: Contexts) -> None:
    client, server = tls_over(*await socket_streams(), contexts)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        await until(lambda: server._session.has_ciphertext)
        await server.do_handshake()


async def test_leaving_a_stream_that_has_ended_is_no_checkpoint(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    for stream in client, server:
        async with stream:
            await stream.aclose()
            with trio.testing.assert_no_checkpoints():
                await stream.__aexit__(None, None, None)
            with trio.testing.assert_checkpoints():
                await stream.aclose()


async def test_the_handshake_in_two_tasks(contexts: Contexts) -> None:
    client, server = tls_over(*await socket_streams(), contexts)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x")
        nursery.start_soon(client.receive_some)
        nursery.start_soon(client.do_handshake)
        await server.send_all(b"y")
        assert await server.receive_some() == b"x"


async def test_a_cancelled_handshake_goes_on_later(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, handshake=False, server_side=False)
    await cut_off(stream.do_handshake)
    async with stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, peer.handshake)
            await stream.do_handshake()
        await stream.send_all(b"x")
        assert await in_thread(peer.receive, 1) == b"x"
    assert (await in_thread(peer.end)).is_clean


async def test_one_task_at_a_time(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await client.unwrap()
        await server.send_all(b"x")


async def test_what_is_known_of_the_connection(contexts: Contexts) -> None:
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    for context in (contexts.server, contexts.client):
        context.set_alpn_protocols(["h2", "http/1.1"])
    client, server = tls_over(*await socket_streams(), contexts)
    for early in (client.version, client.cipher, client.getpeercert, client.get_channel_binding):
        with pytest.raises(trio.NeedHandshakeError):
            early()
    assert client.server_hostname == "localhost"
    assert not client.server_side
    assert server.server_side
    assert client.context is contexts.client
    async with client, server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        assert client.version() == server.version() == "TLSv1.3"
        assert client.selected_alpn_protocol() == "h2"
        assert ("DNS", "localhost") in client.getpeercert()["subjectAltName"]
        assert client.cipher() == server.cipher()
        assert client.session_reused is False
        assert isinstance(client.transport_stream, SocketStream)


async def test_wait_sent(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=32768)
    await stream.wait_sent()
    for _ in range(2):
        await stream.send_all(bytes(120_000))
    await cut_off(stream.wait_sent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.receive, 240_000)
        await stream.wait_sent()
        assert stream._transport.unsent == 0
    await stream.aclose()
    peer.sock.close()


async def test_send_nowait(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await stream.wait_sent()
    assert stream.send_nowait(b"") == 0
    assert stream.send_nowait(b"abc") > 0
    await stream.wait_sent()
    assert stream.send_nowait(bytes(5_000)) == 0  # large enough to be sent at once
    with pytest.raises(ValueError, match="262144 bytes"):
        stream.send_nowait(bytes(PIECE + 1))
    assert stream.send_nowait(bytearray(ACCEPTED)) > 0
    assert stream.send_nowait(memoryview(bytes(PIECE))) > HIGH_WATER
    with pytest.raises(trio.WouldBlock):
        stream.send_nowait(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"x")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            stream.send_nowait(b"x")
        zeros = bytes(5_000 + ACCEPTED + PIECE)
        assert await in_thread(peer.receive, 3 + len(zeros) + 1) == b"abc" + zeros + b"x"
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        stream.send_nowait(b"x")
    assert (await in_thread(peer.end)).is_clean


async def test_send_nowait_makes_no_handshake(contexts: Contexts) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for stream in tls_over(*await socket_streams(), contexts):
            await stack.enter_async_context(stream)
            with pytest.raises(trio.WouldBlock):
                stream.send_nowait(b"x")


async def test_session_resumption(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, server_side=False)
    await in_thread(peer.send, b"x")
    await stream.receive_some()
    session = stream.session
    await stream.aclose()
    peer.sock.close()
    ours, theirs = tcp_pair()
    again = TlsStream(SocketStream(ours), contexts.client, server_hostname="localhost")
    again.session = session
    peer = Peer(theirs, contexts, server_side=True)
    async with again, trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        await again.do_handshake()
        assert again.session_reused
    peer.sock.close()


async def test_unwrap(versioned_contexts: Contexts) -> None:
    client, server = await handshaken(versioned_contexts)
    unwrapped = []

    async def unwrap_then_talk() -> None:
        transport, trailing = await client.unwrap()
        unwrapped.append(trailing)
        await transport.send_all(b"plain text")
        await transport.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unwrap_then_talk)
        transport, trailing = await server.unwrap()
        while len(trailing) < 10:
            trailing += await transport.receive_some()
    assert unwrapped == [b""]
    assert trailing == b"plain text"
    with pytest.raises(trio.ClosedResourceError):
        await server.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        server.transport_stream  # noqa: B018
    await server.aclose()
    await transport.aclose()


async def test_unwrap_while_the_peer_sends(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server:
        await client.send_all(b"unexpected")
        with pytest.raises(trio.BrokenResourceError, match="sent data"):
            await server.unwrap()
        assert await server.receive_some() == b"u"
        assert await server.receive_some() == b"nexpected"


async def test_c11_fin_is_no_end_of_tls_to_unwrap(contexts: Contexts) -> None:
    """``https_compatible`` is about reading."""
    stream, peer = await meet(contexts, https_compatible=True)
    async with stream:
        peer.sock.close()
        with pytest.raises(TruncationError):
            await stream.unwrap()


@pytest.mark.parametrize("name", ["other.example", "no..name"])
async def test_a_certificate_that_does_not_fit(contexts: Contexts, name: str) -> None:
    client, server = await socket_streams()
    stream = TlsStream(client, contexts.client, server_hostname=name)
    acceptor = TlsStream(server, contexts.server, server_side=True)

    async def serve() -> None:
        with pytest.raises(trio.BrokenResourceError, match=r"(?i)alert"):
            async with acceptor:
                await acceptor.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(trio.BrokenResourceError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            async with stream:
                await stream.do_handshake()
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert stream.close_outcome is not CloseOutcome.CLEAN


async def test_plain_http_to_the_tls_port(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    stream = TlsStream(SocketStream(ours), contexts.server, server_side=True)
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="HTTP_REQUEST"):
        async with stream:
            await stream.do_handshake()
    theirs.close()


async def test_wrong_arguments(contexts: Contexts) -> None:
    stream, other = await socket_streams()
    async with stream, other:
        with pytest.raises(ValueError, match="server_hostname"):
            TlsStream(stream, contexts.client)  # check_hostname needs a name
        with pytest.raises(TypeError, match=r"trio\.abc\.Stream"):
            TlsStream(object(), contexts.client)  # type: ignore[type-var]
        with pytest.raises(ValueError, match="timeout"):
            TlsStream(stream, contexts.server, server_side=True, shutdown_timeout=-1)
        await stream.send_all(b"and the connection is still ours")
        assert await other.receive_some() == b"and the connection is still ours"


async def test_the_name_is_encoded_as_trio_resolves_it(contexts: Contexts) -> None:
    client, server = await socket_streams()
    async with server, TlsStream(client, contexts.client, server_hostname="fa\u00df.de") as stream:
        assert stream.server_hostname == "xn--fa-hia.de"


async def test_one_tls_stream_for_a_connection(contexts: Contexts) -> None:
    client, server = await socket_streams()
    stream = TlsStream(client, contexts.client, server_hostname="localhost")
    with pytest.raises(ValueError, match="another TlsStream"):
        TlsStream(client, contexts.client, server_hostname="localhost")
    await stream.aclose()
    await server.aclose()


async def test_failures_leave_no_reference_cycles(
    contexts: Contexts, request: pytest.FixtureRequest
) -> None:
    gc.disable()
    request.addfinalizer(gc.enable)
    made = []
    for _ in range(20):
        stream, peer = await meet(contexts)
        made.append(weakref.ref(stream))
        peer.sock.sendall(b"\x17\x03\x03\x00\x05junk!")
        try:
            async with stream:
                await stream.receive_some()
        except trio.BrokenResourceError:
            pass
        peer.sock.close()
    del stream, peer
    assert not any(stream() for stream in made)


@pytest.mark.parametrize("amount", [1, 8_000_000], ids=["sent at once", "sent bit by bit"])
async def test_a_closed_connection_is_freed_at_once(
    contexts: Contexts, request: pytest.FixtureRequest, amount: int
) -> None:
    """The TLS state is tens of KiB: it must not wait for the garbage collector."""
    gc.disable()
    request.addfinalizer(gc.enable)
    client, server = await handshaken(contexts)
    alive = weakref.ref(server._session.object)

    async def send(stream: TlsStream) -> None:
        async with stream:
            await stream.send_all(bytes(amount))

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(send, server)
        received = 0
        async for data in client:
            received += len(data)
    assert received == amount
    await until(lambda: sum(statistics().closings.values()) == 2)
    await until(lambda: not statistics().connections_closing)
    del server
    assert alive() is None


async def test_serving_and_connecting(contexts: Contexts) -> None:
    async def echo(stream: TlsStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners: list[TlsListener] = await nursery.start(
            serve_tls_over_tcp, echo, 0, contexts.server
        )
        listener = listeners[0].transport_listener
        port = listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        async with await open_tls_over_tcp_stream(
            "localhost", port, ssl_context=contexts.client
        ) as stream:
            await stream.send_all(b"echo")
            assert await stream.receive_some() == b"echo"
            await stream.send_eof()
            assert await stream.receive_some() == b""
        assert stream.close_outcome is CloseOutcome.CLEAN
        nursery.cancel_scope.cancel()


async def test_a_port_in_use(contexts: Contexts) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        port = taken.getsockname()[1]
        await open_tls_over_tcp_listeners(port, contexts.server, host="127.0.0.1")


async def test_serving_goes_on_when_descriptors_run_short(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_up = Acceptor._fill_up
    monkeypatch.setattr(_accepting._records, "_next_at", 0.0)
    refusals = [errno.EMFILE, errno.ENFILE]

    def refuse_at_first(acceptor: Acceptor) -> None:
        if refusals:
            raise OSError(refusals.pop(), "no descriptor is left")
        fill_up(acceptor)

    monkeypatch.setattr(Acceptor, "_fill_up", refuse_at_first)

    async def greet(stream: TlsStream) -> None:
        await stream.send_all(b"hello")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(serve_tls_over_tcp, greet, 0, contexts.server, host="127.0.0.1")
        )
        address = listeners[0].transport_listener.socket.getsockname()
        with socket.create_connection(address) as sock:
            peer = Peer(sock, contexts, server_side=False)
            await in_thread(peer.handshake)
            end = await in_thread(peer.read_to_end)
        nursery.cancel_scope.cancel()
    assert end.data == b"hello"
    assert end.is_clean
    assert [record.message for record in caplog.records if "accept" in record.message] == [
        "can't accept connections: no descriptor is left. Trying again"
    ]
