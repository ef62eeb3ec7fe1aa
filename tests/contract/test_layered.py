"""TLS upon streams that are made of others: TLS in TLS, a StapledStream of sockets.

C1, C8: the upper connection ends first. C3, C13, C21: what is no end there is none below either.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from ringtls import CloseOutcome, SocketStream, TlsStream, relay, statistics

from ..conftest import Contexts
from ..support.clogging import SMALL, clog
from ..support.peer import trio_socket_stream
from ..support.streams import handshaken, tcp_pair
from ..support.waiting import LIMIT, until

AnyTls = TlsStream[Any]
Sockets = tuple[socket.socket, socket.socket]


def tls(below: trio.abc.Stream, contexts: Contexts, *, server_side: bool, **options: Any) -> AnyTls:
    if server_side:
        return TlsStream(below, contexts.server, server_side=True, **options)
    return TlsStream(below, contexts.client, server_hostname="localhost", **options)


def tls_of_trio(below: trio.abc.Stream, contexts: Contexts, *, server_side: bool) -> Any:
    if server_side:
        return trio.SSLStream(below, contexts.server, server_side=True)
    return trio.SSLStream(below, contexts.client, server_hostname="localhost")


def stapled(make: Callable[[socket.socket], Any], socks: Sockets, *, server_side: bool) -> Any:
    """The first socket takes what the client says."""
    one, other = map(make, socks)
    return trio.StapledStream(other, one) if server_side else trio.StapledStream(one, other)


#: By what is below.
KINDS = ["tls", "tls in tls", "tls of trio", "sockets", "sockets of trio"]


def over(
    kind: str, socks: Sockets, contexts: Contexts, *, server_side: bool, **options: Any
) -> AnyTls:
    """TLS upon that, of which one side has these sockets."""
    below: Any
    if kind == "sockets":
        below = stapled(SocketStream, socks, server_side=server_side)
    elif kind == "sockets of trio":
        below = stapled(trio_socket_stream, socks, server_side=server_side)
    elif kind == "tls of trio":
        below = tls_of_trio(trio_socket_stream(socks[0]), contexts, server_side=server_side)
    else:
        below = SocketStream(socks[0])
        for _ in kind.split(" in "):
            below = tls(below, contexts, server_side=server_side)
    return tls(below, contexts, server_side=server_side, **options)


@contextmanager
def sockets(size: int | None = None) -> Iterator[tuple[Sockets, Sockets]]:
    """Those of both sides."""
    (a, b), (c, d) = tcp_pair(size), tcp_pair(size)
    try:
        yield (a, c), (b, d)
    finally:
        for sock in (a, b, c, d):
            sock.close()


@asynccontextmanager
async def meet(
    contexts: Contexts, kind: str, **options: Any
) -> AsyncIterator[tuple[AnyTls, AnyTls]]:
    """Two sides. The second takes an end of what is below for an end, and ours must not."""
    with sockets() as (ours, theirs):
        client = over(kind, ours, contexts, server_side=False, **options)
        server = over(kind, theirs, contexts, server_side=True, https_compatible=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        yield client, server
        await server.aclose()
        await client.aclose()
        await until(lambda: not statistics().connections_closing)


async def close_unclean(stream: AnyTls) -> None:
    stream.close_unclean()
    await stream.aclose()


async def leave_by_error(stream: AnyTls) -> None:
    with pytest.raises(KeyError):
        async with stream:
            raise KeyError


async def leave_by_cancellation(stream: AnyTls) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            scope.cancel()
            await trio.sleep_forever()


async def crash(stream: AnyTls) -> None:
    stream._closing.crash(MemoryError())
    await stream.aclose()


UNCLEAN = [close_unclean, leave_by_error, leave_by_cancellation, crash]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", UNCLEAN)
async def test_c13_c21_what_is_no_end_is_none_below(
    contexts: Contexts, kind: str, leave: Callable[[AnyTls], Awaitable[None]]
) -> None:
    async with meet(contexts, kind, reset_on_error=True) as (client, server):
        await client.send_all(b"half an answer")
        assert await server.receive_some() == b"half an answer"
        await leave(client)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


@pytest.mark.parametrize("kind", KINDS)
async def test_c21_what_was_accepted_is_delivered_before(contexts: Contexts, kind: str) -> None:
    data = bytes(3_000_000)
    received = bytearray()
    async with meet(contexts, kind, reset_on_error=True) as (client, server):

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                async for piece in server:
                    received.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with pytest.raises(KeyError):
                async with client:
                    await client.send_all(data)
                    raise KeyError
    assert received == data


async def test_r3_a_broken_side_of_a_relay(contexts: Contexts) -> None:
    async with meet(contexts, "tls") as (client, server):
        ours, theirs = map(SocketStream, tcp_pair())
        async with theirs, trio.open_nursery() as nursery:
            nursery.start_soon(relay, ours, client)
            await theirs.send_all(b"half an answer")
            assert await server.receive_some() == b"half an answer"
            theirs.close_unclean()
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()


@pytest.mark.parametrize("is_unclean", [True, False])
async def test_c3_the_end_below_takes_no_time_of_its_own(
    contexts: Contexts, is_unclean: bool
) -> None:
    """The peer reads nothing."""
    with sockets(SMALL) as (ours, theirs):
        client = over("tls", ours, contexts, server_side=False, shutdown_timeout=0.1)
        server = over("tls", theirs, contexts, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        client.transport_stream.shutdown_timeout = 1e9
        await clog(client)
        with trio.fail_after(LIMIT):
            await (close_unclean(client) if is_unclean else client.aclose())
        expected = CloseOutcome.UNCLEAN if is_unclean else CloseOutcome.TIMED_OUT
        assert client.close_outcome is client.transport_stream.close_outcome is expected
        await server.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_wait_acknowledged(contexts: Contexts, kind: str) -> None:
    async with meet(contexts, kind) as (client, server), trio.open_nursery() as nursery:

        async def receive() -> None:
            async for _ in server:
                pass

        nursery.start_soon(receive)
        async with client:
            await client.send_all(bytes(3_000_000))
            await client.wait_acknowledged()


async def test_wait_acknowledged_of_what_was_destroyed_below(contexts: Contexts) -> None:
    with sockets(SMALL) as (ours, theirs):
        client = over("tls", ours, contexts, server_side=False)
        server = over("tls", theirs, contexts, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        await client.send_all(bytes(100_000))
        client.transport_stream.close_unclean()
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await client.wait_acknowledged()
        await client.aclose()
        await server.aclose()


KEPT: list[object] = []


def keep(client: AnyTls) -> None:
    KEPT.append(client)


def keep_in_a_cycle(client: AnyTls) -> None:
    cycle: list[object] = [client.transport_stream, client]
    cycle.append(cycle)


def fail(client: AnyTls) -> None:
    KEPT.append(client)
    raise KeyError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", [keep, keep_in_a_cycle, fail])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.ringtls_allow_unclosed
def test_c1_c8_what_is_open_at_the_end_of_the_run_ends_from_above(
    contexts: Contexts, kind: str, leave: Callable[[AnyTls], None]
) -> None:
    data = bytes(1_000_000)
    received = bytearray()

    async def main(socks: Sockets) -> None:
        client = over(kind, socks, contexts, server_side=False)
        await client.send_all(data)
        leave(client)

    async def peer(socks: Sockets) -> None:
        async with over(kind, socks, contexts, server_side=True) as server:
            async for piece in server:  # raises TruncationError where there is no close_notify
                received.extend(piece)
            received.extend(b"end")

    with sockets() as (ours, theirs):
        thread = threading.Thread(target=trio.run, args=(peer, theirs))
        thread.start()
        with suppress(KeyError):
            trio.run(main, ours)
        thread.join()
    KEPT.clear()
    assert received == data + b"end"


async def test_c1_c8_a_stream_below_is_taken_once(contexts: Contexts) -> None:
    """And not at all when nothing can be sent upon it."""
    outer, theirs = await handshaken(contexts)
    inner = tls(outer, contexts, server_side=False)
    with pytest.raises(ValueError, match="another TlsStream"):
        tls(outer, contexts, server_side=False)
    with pytest.raises(ValueError, match="another TlsStream"):
        await relay(outer, theirs)
    await inner.aclose()
    with pytest.raises(trio.ClosedResourceError):
        tls(outer, contexts, server_side=False)
    await theirs.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        tls(theirs, contexts, server_side=False)
    await theirs.aclose()


@pytest.mark.parametrize("leave", [keep, fail])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.ringtls_allow_unclosed
def test_c3_c16_the_run_ends_though_the_peer_takes_in_nothing(
    contexts: Contexts, leave: Callable[[AnyTls], None]
) -> None:
    async def main(ours: Sockets, theirs: Sockets) -> None:
        client = over("tls", ours, contexts, server_side=False, shutdown_timeout=0.1)
        server = over("tls", theirs, contexts, server_side=True, shutdown_timeout=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        while not client._transport.unsent:
            client.send_nowait(bytes(100_000))
            await trio.testing.wait_all_tasks_blocked(0.05)
        KEPT.append(server)
        leave(client)

    with sockets(SMALL) as (ours, theirs), suppress(KeyError):
        trio.run(main, ours, theirs)
    KEPT.clear()
