"""C1, C17 and the rest where TLS has put a trio.SocketStream on the ring."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TlsStream, statistics
from ringtls._streams.trio_socket import StandIn
from ringtls._transports.ring import RingTransport
from ringtls._transports.stream import StreamTransport

from ..conftest import Contexts
from ..support.peer import Peer, adapted_socket_stream, trio_socket_stream
from ..support.streams import tcp_pair
from ..support.waiting import closed_while_it_waits
from ..test_adapter import over

SocketTls = TlsStream[trio.SocketStream]


async def met(contexts: Contexts) -> tuple[trio.SocketStream, SocketTls, Peer]:
    ours, theirs = tcp_pair()
    below = trio_socket_stream(ours)
    stream = TlsStream(below, contexts.server, server_side=True)
    peer = Peer(theirs, contexts, server_side=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        nursery.start_soon(stream.do_handshake)
    return below, stream, peer


async def test_it_is_on_the_ring_and_stays_the_users(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    number, address, family = ours.fileno(), ours.getsockname(), ours.family
    below = trio_socket_stream(ours)
    stream = TlsStream(below, contexts.server, server_side=True)
    assert isinstance(stream._transport, RingTransport)
    assert stream.transport_stream is below
    assert below.socket.fileno() == number
    assert below.socket.getsockname() == address
    assert (below.socket.family, below.socket.type) == (family, socket.SOCK_STREAM)
    assert below.socket.proto == ours.proto
    assert repr(below.socket).endswith(", used by a TlsStream>")
    below.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert below.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    await stream.aclose()
    assert below.socket.fileno() == -1
    theirs.close()


async def test_every_method_of_a_socket_is_answered() -> None:
    names = {name for name in vars(trio.socket.SocketType) if not name.startswith("_")}
    assert names <= vars(StandIn).keys()


async def test_its_own_data_methods_are_refused(contexts: Contexts) -> None:
    below, stream, peer = await met(contexts)
    for call in (below.receive_some, lambda: below.send_all(b"x")):
        with pytest.raises(trio.BusyResourceError, match="TlsStream"):
            await call()
    await stream.aclose()
    for call in (below.receive_some, lambda: below.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    await below.aclose()
    assert (await in_thread(peer.end)).is_clean


async def has_ended_in_order(stream: SocketTls, peer: Peer) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")
    await stream.aclose()
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"last words"


async def test_c1_closing_it_ends_in_order(contexts: Contexts) -> None:
    below, stream, peer = await met(contexts)
    await stream.send_all(b"last words")
    await below.aclose()
    await has_ended_in_order(stream, peer)


async def test_c1_leaving_its_socket_ends_in_order(contexts: Contexts) -> None:
    below, stream, peer = await met(contexts)
    await stream.send_all(b"last words")
    assert not below.socket.did_shutdown_SHUT_WR
    with below.socket:
        pass
    await has_ended_in_order(stream, peer)


async def test_shutting_its_socket_down(contexts: Contexts) -> None:
    """As trio's own, it knows then that nothing more can be sent."""
    below, stream, peer = await met(contexts)
    below.socket.shutdown(socket.SHUT_RD)
    assert not below.socket.did_shutdown_SHUT_WR
    below.socket.shutdown(socket.SHUT_WR)
    assert below.socket.did_shutdown_SHUT_WR
    stream.close_unclean()
    assert not (await in_thread(peer.end)).is_clean


async def test_c17_its_owners_object_can_not_close_it(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    with ours:
        stream = TlsStream(trio_socket_stream(ours), contexts.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        nursery.start_soon(stream.do_handshake)
    async with stream:
        await stream.send_all(b"still there")
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b"still there"


async def test_c17_who_waits_for_it_in_trio_wakes(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    below = trio_socket_stream(ours)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, below.receive_some)
        await wait_all_tasks_blocked()
        stream = TlsStream(below, contexts.server, server_side=True)
    await stream.aclose()
    theirs.close()


async def test_unwrap_gives_it_back_to_trio(contexts: Contexts) -> None:
    """Twice, so that what is given back is as good as new."""
    left, right = (trio_socket_stream(sock) for sock in tcp_pair())
    numbers = [left.socket.fileno(), right.socket.fileno()]
    for _ in range(2):
        client, server = await over(left, right, contexts)
        await client.send_all(b"encrypted")
        assert await server.receive_some() == b"encrypted"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.unwrap)
            transport, trailing = await server.unwrap()
        assert transport is right
        assert trailing == b""
        assert statistics().connections_open == 0
        assert statistics().operations_in_flight == 0
        assert [left.socket.fileno(), right.socket.fileno()] == numbers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, bytes(4 << 20))  # both ways it has to wait
            received = 0
            while received < 4 << 20:
                received += len(await right.receive_some())
    await left.aclose()
    assert await right.receive_some() == b""
    await right.aclose()


async def test_a_cancelled_unwrap_leaves_the_connection_tls(contexts: Contexts) -> None:
    below, stream, peer = await met(contexts)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.unwrap)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert isinstance(below.socket, StandIn)
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert (await in_thread(peer.end)).is_clean


async def test_a_socket_of_another_class_need_not_have_a_descriptor(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tcp_pair()
    below = adapted_socket_stream(ours)
    monkeypatch.setattr(below.socket, "fileno", lambda: -1)
    stream = TlsStream(below, contexts.server, server_side=True)
    stream.close_unclean()
    await stream.aclose()
    theirs.close()


async def test_what_is_not_taken(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    below = trio_socket_stream(ours)
    with pytest.raises(ValueError, match="timeout"):
        TlsStream(below, contexts.server, server_side=True, shutdown_timeout=-1)
    await below.send_all(b"still trio's")
    stream = TlsStream(below, contexts.server, server_side=True)
    with pytest.raises(ValueError, match="another TlsStream"):
        TlsStream(below, contexts.server, server_side=True)
    foreign = TlsStream(adapted_socket_stream(theirs), contexts.client, server_hostname="localhost")
    assert isinstance(foreign._transport, StreamTransport)
    foreign.close_unclean()
    await foreign.aclose()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        TlsStream(below, contexts.server, server_side=True)
