"""What comes before TLS does: peek, and the bytes that were read already (initial_input)."""

from __future__ import annotations

import gc
import ssl
import threading
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import SocketStream, TlsStream, blocking

from .conftest import Contexts
from .support.peer import MakeTransport, Peer, meet
from .support.signals import signal_in_the_ring
from .support.streams import reset, socket_streams, tcp_pair
from .support.waiting import closed_while_it_waits, cut_off

HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"


# peek


async def test_peek_takes_nothing() -> None:
    ours, theirs = await socket_streams()
    await theirs.send_all(HEADER)
    assert await ours.peek(5) == b"PROXY"
    assert await ours.peek(1000) == HEADER
    assert await ours.receive_some() == HEADER
    await ours.aclose()
    await theirs.aclose()


async def test_peek_waits_for_the_first_byte() -> None:
    ours, theirs = await socket_streams()
    seen: list[bytes] = []

    async def look() -> None:
        seen.append(await ours.peek(100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await wait_all_tasks_blocked()
        assert not seen
        with pytest.raises(trio.BusyResourceError):
            await ours.peek(1)
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        await theirs.send_all(b"x")
    assert seen == [b"x"]
    await ours.aclose()
    await theirs.aclose()


async def test_peek_at_the_end() -> None:
    ours, theirs = await socket_streams()
    await theirs.send_all(b"last")
    await theirs.aclose()
    assert await ours.peek(100) == b"last"
    assert await ours.receive_some() == b"last"
    assert await ours.peek(100) == b""
    assert await ours.receive_some() == b""
    await ours.aclose()


async def test_h4_a_cancelled_peek_leaves_everything_unread() -> None:
    ours, theirs = await socket_streams()
    await cut_off(ours.peek, 100)
    await theirs.send_all(HEADER)
    assert await ours.receive_some() == HEADER
    await ours.aclose()
    await theirs.aclose()


async def test_c4_closing_wakes_who_peeks() -> None:
    ours, theirs = await socket_streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, partial(ours.peek, 1))
        await wait_all_tasks_blocked()
        await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.peek(1)
    await theirs.aclose()


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5])
async def test_peek_asks_for_a_sensible_number(max_bytes: Any) -> None:
    ours, theirs = await socket_streams()
    with pytest.raises((ValueError, TypeError)):
        await ours.peek(max_bytes)
    await ours.aclose()
    await theirs.aclose()


async def test_a_reset_that_peek_met_is_no_end_for_tls(contexts: Contexts) -> None:
    """The kernel reports it once."""
    ours, theirs = tcp_pair()
    below = SocketStream(ours)
    reset(theirs)
    with pytest.raises(trio.BrokenResourceError):
        await below.peek(1)
    stream = TlsStream(below, contexts.server, server_side=True, https_compatible=True)
    async with stream:
        with pytest.raises(trio.BrokenResourceError, match="the connection broke"):
            await stream.receive_some()


async def test_tls_after_a_peek(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    below = SocketStream(ours)
    peer = Peer(theirs, contexts, server_side=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        assert await below.peek(1) == b"\x16"  # a handshake's record: RFC 8446, section 5.1
        stream = TlsStream(below, contexts.server, server_side=True)
        await stream.do_handshake()
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


def test_blocking_peek() -> None:
    ours, theirs = tcp_pair()
    with blocking.SocketStream(ours) as stream, theirs:
        stream.timeout = 0.001
        with pytest.raises(TimeoutError):
            stream.peek(1)
        stream.timeout = None
        with signal_in_the_ring(), pytest.raises(KeyboardInterrupt):
            stream.peek(1)
        theirs.sendall(HEADER)
        assert stream.peek(5) == b"PROXY"
        assert stream.receive_some() == HEADER


# initial_input


def client_hello(peer: Peer) -> bytes:
    """The peer's first message, which it does not send itself."""
    with suppress(ssl.SSLWantReadError):
        peer.ssl.do_handshake()
    return peer._outgoing.read()


@pytest.mark.parametrize("taken", [1, 100, None], ids=["a byte", "a piece", "all"])
async def test_c1_what_was_read_before_tls_is_not_lost(
    versioned_contexts: Contexts, transport: MakeTransport, taken: int | None
) -> None:
    ours, theirs = tcp_pair()
    peer = Peer(theirs, versioned_contexts, server_side=False)
    hello = client_hello(peer)
    theirs.sendall(HEADER + hello)
    below = transport(ours)
    got = bytearray()
    most = len(HEADER) + (len(hello) if taken is None else taken)
    while len(got) < most:
        got += await below.receive_some(most - len(got))
    stream = TlsStream(
        below,
        versioned_contexts.server,
        server_side=True,
        initial_input=memoryview(got)[len(HEADER) :],
    )
    got[:] = bytes(len(got))  # it was copied
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        await stream.do_handshake()
    await in_thread(peer.send, b"question")
    assert await stream.receive_some() == b"question"
    await stream.send_all(b"answer")
    await stream.aclose()
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"answer"


async def test_input_of_tls_after_tls(contexts: Contexts) -> None:
    """What unwrap() returns may be the start of the next TLS connection."""
    stream, peer = await meet(contexts)
    again = Peer(peer.sock, contexts, server_side=False)
    with suppress(ssl.SSLWantReadError):
        peer.ssl.unwrap()
    peer.sock.sendall(peer._outgoing.read() + client_hello(again))
    below, trailing = await stream.unwrap()
    assert trailing
    await in_thread(peer._feed)  # our close_notify
    second = TlsStream(below, contexts.server, server_side=True, initial_input=trailing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, again.handshake)
        await second.do_handshake()
    await second.aclose()
    assert (await in_thread(again.end)).is_clean


async def test_c6_half_a_hello_is_no_handshake(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    hello = client_hello(Peer(theirs, contexts, server_side=False))
    stream = TlsStream(
        SocketStream(ours), contexts.server, server_side=True, initial_input=hello[:50]
    )
    await cut_off(stream.do_handshake)
    await stream.aclose()
    assert await in_thread(theirs.recv, 100) == b""
    theirs.close()


@pytest.mark.ringtls_allow_unclosed
async def test_c8_dropped_with_initial_input(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    hello = client_hello(Peer(theirs, contexts, server_side=False))
    stream = TlsStream(SocketStream(ours), contexts.server, server_side=True, initial_input=hello)
    with pytest.warns(ResourceWarning, match=r"test_before_tls.py:"):
        del stream
        gc.collect()
    assert await in_thread(theirs.recv, 100) == b""
    theirs.close()


async def test_input_that_is_none_of_tls(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    stream = TlsStream(
        SocketStream(ours), contexts.server, server_side=True, initial_input=b"GET / HTTP/1.1\r\n"
    )
    async with stream:
        with pytest.raises(trio.BrokenResourceError, match="HTTP_REQUEST"):
            await stream.do_handshake()
    with theirs:
        alert = await in_thread(theirs.recv, 100)
        assert alert[:1] in (b"\x15", b"")  # OpenSSL has none for this


@pytest.mark.parametrize("initial_input", ["text", "", None])
async def test_input_that_is_no_bytes_loses_nothing(contexts: Contexts, initial_input: Any) -> None:
    ours, theirs = await socket_streams()
    with pytest.raises(TypeError, match="bytes-like"):
        TlsStream(ours, contexts.server, server_side=True, initial_input=initial_input)
    await theirs.send_all(b"x")
    assert await ours.receive_some() == b"x"
    await ours.aclose()
    await theirs.aclose()


def test_blocking_initial_input(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    theirs.sendall(HEADER + client_hello(peer))
    below = blocking.SocketStream(ours)
    got = below.receive_some()
    stream = blocking.TlsStream(
        below, contexts.server, server_side=True, initial_input=got[len(HEADER) :]
    )
    thread = threading.Thread(target=peer.handshake)
    thread.start()
    stream.do_handshake()
    thread.join()
    stream.close()
    assert peer.end().is_clean
