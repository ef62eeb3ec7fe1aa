"""input_pending: what a pool of connections asks before it uses an idle one again."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable

import pytest
import trio

from ringtls import SocketStream, TruncationError, blocking

from .conftest import Contexts
from .support.peer import Peer, meet
from .support.streams import reset, tcp_pair
from .support.waiting import LIMIT, until, wait_until


def close_notify_and_fin(peer: Peer) -> None:
    peer.send_close_notify()
    peer.sock.shutdown(socket.SHUT_WR)


def fin(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)


def data(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 408 Request Timeout\r\n")


ENDS: dict[str, Callable[[Peer], None]] = {
    "close_notify and FIN": close_notify_and_fin,
    "close_notify": Peer.send_close_notify,
    "FIN": fin,
    "RST": lambda peer: reset(peer.sock),
    "data": data,
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("has_received", [True, False])
async def test_what_a_receive_would_return_at_once(
    contexts: Contexts, name: str, has_received: bool
) -> None:
    stream, peer = await meet(contexts, server_side=False)
    if has_received:
        peer.send(b"answer")
        assert await stream.receive_some() == b"answer"
    assert not stream.input_pending
    ENDS[name](peer)
    await until(lambda: stream.input_pending)
    assert stream.input_pending  # it took nothing
    with trio.fail_after(LIMIT):
        try:
            got: object = await stream.receive_some()
        except trio.BrokenResourceError as error:
            got = type(error)
    expected = {"data": b"HTTP/1.1 408 Request Timeout\r\n", "FIN": TruncationError}
    if name == "RST":
        assert got in (trio.BrokenResourceError, TruncationError)
    else:
        assert got == expected.get(name, b"")
    await stream.aclose()
    peer.sock.close()


async def test_a_session_ticket_alone_is_nothing(contexts: Contexts) -> None:
    """TLS 1.3: it came after the handshake, and lies there."""
    only_1_3 = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    stream, peer = await meet(only_1_3, server_side=False)
    await until(lambda: stream._session.has_ciphertext or stream.session is not None)
    assert not stream.input_pending
    await stream.aclose()
    peer.sock.close()


async def test_a_closed_stream_is_asked_in_vain(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        _ = stream.input_pending
    peer.sock.close()


async def test_before_the_handshake(contexts: Contexts) -> None:
    stream, peer = await meet(contexts, handshake=False)
    assert not stream.input_pending
    fin(peer)
    await until(lambda: stream.input_pending)
    await stream.aclose()
    peer.sock.close()


async def test_of_a_socket() -> None:
    ours, theirs = tcp_pair()
    stream = SocketStream(ours)
    assert not stream.input_pending
    theirs.sendall(b"x")
    await until(lambda: stream.input_pending)
    assert await stream.receive_some() == b"x"
    assert not stream.input_pending
    theirs.close()
    await until(lambda: stream.input_pending)
    await stream.aclose()


def test_of_blocking_streams(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    below = blocking.SocketStream(ours)
    assert not below.input_pending
    stream = blocking.TlsStream(below, contexts.client, server_hostname="localhost")
    peer = Peer(theirs, contexts, server_side=True)
    handshake_with(stream, peer)
    assert not stream.input_pending
    peer.send(b"x")
    wait_until(lambda: stream.input_pending)
    assert stream.receive_some() == b"x"
    peer.send_close_notify()
    wait_until(lambda: stream.input_pending)
    stream.close()
    theirs.close()


def handshake_with(stream: blocking.TlsStream, peer: Peer) -> None:
    thread = threading.Thread(target=peer.handshake)
    thread.start()
    stream.do_handshake()
    thread.join()


def test_the_ring_looks_only_where_it_may(contexts: Contexts) -> None:
    """In another thread it is refused, as every call."""

    async def main() -> None:
        stream, peer = await meet(contexts)
        with pytest.raises(RuntimeError, match="another thread"):
            await trio.to_thread.run_sync(lambda: stream.input_pending)
        await stream.aclose()
        peer.sock.close()

    trio.run(main)
