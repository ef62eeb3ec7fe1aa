"""D6: asynchronous code in a plain thread, by ringtls.blocking.call."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest
import trio

import ringtls
from ringtls import CloseOutcome, blocking

from ..conftest import Contexts
from ..support.clogging import ACCEPTED, NARROW, SMALL
from ..support.peer import End, Peer
from ..support.signals import signal_in_the_ring
from ..support.streams import tcp_pair
from ..support.waiting import LIMIT


class Connection:
    """A blocking stream, and a peer in a thread that echoes what it gets, until the end."""

    def __init__(self, contexts: Contexts) -> None:
        ours, theirs = tcp_pair()
        self.stream = blocking.TlsStream(
            blocking.SocketStream(ours), contexts.server, server_side=True, shutdown_timeout=LIMIT
        )
        self._peer = Peer(theirs, contexts, server_side=False)
        self._ends: list[End] = []
        self._thread = threading.Thread(target=self._echo)
        self._thread.start()

    def _echo(self) -> None:
        self._peer.handshake()
        self._peer.send(b"hello")
        self._ends.append(self._peer.end())

    def end(self) -> End:
        self._thread.join()
        return self._ends[0]


@pytest.fixture
def connection(contexts: Contexts) -> Iterator[Connection]:
    connection = Connection(contexts)
    yield connection
    connection.stream.close()
    connection.end()


async def converse(stream: ringtls.TlsStream, words: bytes) -> bytes:
    async with stream:
        await stream.send_all(words)
        return await stream.receive_some()


def test_d6_one_body(connection: Connection) -> None:
    assert blocking.call(converse, connection.stream, words=b"from a thread") == b"hello"
    end = connection.end()
    assert end.is_clean
    assert end.data == b"from a thread"
    assert connection.stream.close_outcome is CloseOutcome.CLEAN


def test_d6_what_is_known_and_set(connection: Connection) -> None:
    async def ask(stream: ringtls.TlsStream) -> str | None:
        stream.farewell = b"goodbye"
        stream.timeout = 20  # type: ignore[attr-defined]
        await stream.do_handshake()
        return stream.version()

    assert blocking.call(ask, connection.stream) == connection.stream.version()
    assert connection.stream.timeout == 20
    connection.stream.close()
    assert connection.end().data == b"goodbye"


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def coroutines(kind: type) -> set[str]:
    return {name for name in public(kind) if inspect.iscoroutinefunction(getattr(kind, name))}


def test_d6_a_face_has_all_that_the_stream_has() -> None:
    """But for what hands out an operation, which needs a run to be awaited in."""
    operations = {"start_send", "start_receive"}
    for kind, blocking_kind, face in (
        (ringtls.SocketStream, blocking.SocketStream, blocking._faces._SocketFace),
        (ringtls.TlsStream, blocking.TlsStream, blocking._faces._TlsFace),
    ):
        assert public(kind) - public(face) == public(kind) & operations
        assert coroutines(kind) == coroutines(face)
        assert public(blocking_kind) - public(face) == {"close"}


def test_d6_a_sockets_options() -> None:
    async def set_options(stream: ringtls.SocketStream) -> tuple[object, object]:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 123)
        stream.reset_if_killed()
        return (
            stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            stream.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8),
        )

    ours, theirs = tcp_pair()
    with theirs, blocking.SocketStream(ours) as stream:
        assert blocking.call(set_options, stream) == (123, struct.pack("ii", 1, 0))


def test_d6_sending_without_waiting(contexts: Contexts) -> None:
    """What is accepted is waited for by wait_sent(), within the stream's timeout."""
    ours, theirs = tcp_pair(SMALL)
    peer = Peer(theirs, contexts, server_side=False)
    piece = bytes(ACCEPTED)
    ends: list[End] = []

    async def send(stream: ringtls.TlsStream) -> None:
        with pytest.raises(trio.WouldBlock):  # there is a handshake to be made
            stream.send_nowait(piece)
        handshake = threading.Thread(target=peer.handshake)
        handshake.start()
        await stream.do_handshake()
        handshake.join()
        assert stream.send_nowait(b"small") >= len("small")
        await stream.wait_sent()
        assert stream.send_nowait(piece) >= len(piece) - NARROW
        await stream.wait_send_all_might_not_block()
        stream.timeout = 0  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            await stream.wait_sent()
        stream.timeout = None  # type: ignore[attr-defined]
        reading = threading.Thread(target=lambda: ends.append(peer.end()))
        reading.start()
        await stream.wait_sent()
        assert stream.send_nowait(b"") == 0
        await stream.aclose()
        reading.join()

    below = blocking.SocketStream(ours)
    blocking.call(send, blocking.TlsStream(below, contexts.server, server_side=True))
    assert ends[0].is_clean
    assert ends[0].data == b"small" + piece


def test_d6_the_end_of_an_exception(connection: Connection) -> None:
    async def fail(stream: ringtls.TlsStream) -> None:
        async with stream:
            await stream.send_all(b"before")
            raise LookupError

    connection.stream.reset_on_error = True
    with pytest.raises(LookupError):
        blocking.call(fail, connection.stream)
    end = connection.end()
    assert (end.data, end.close_notify) == (b"before", False)
    assert connection.stream.close_outcome is CloseOutcome.BROKEN_OFF


def test_d6_a_timeout(connection: Connection) -> None:
    async def wait(stream: ringtls.TlsStream) -> None:
        async with stream:
            assert await stream.receive_some() == b"hello"
            stream.timeout = 0.01  # type: ignore[attr-defined]
            await stream.receive_some()

    with pytest.raises(TimeoutError, match="timed out"):
        blocking.call(wait, connection.stream)
    assert connection.end().is_clean


def test_d6_a_keyboard_interrupt(connection: Connection) -> None:
    async def wait(stream: ringtls.TlsStream) -> None:
        async with stream:
            assert await stream.receive_some() == b"hello"
            with signal_in_the_ring():
                await stream.receive_some()

    with pytest.raises(KeyboardInterrupt):
        blocking.call(wait, connection.stream)
    assert connection.end().is_clean


def test_d6_streams_that_are_made_inside(contexts: Contexts) -> None:
    """By what makes them, which is an argument, too; a stream that is returned is blocking."""

    async def connect(
        make_socket: Callable[..., Any], make_tls: Callable[..., Any], sock: socket.socket
    ) -> ringtls.TlsStream:
        stream = make_tls(make_socket(sock), server_hostname="localhost")
        await stream.do_handshake()
        assert not isinstance(stream, blocking.TlsStream)
        return stream  # type: ignore[no-any-return]

    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=True)
    ends: list[End] = []

    def peer_story() -> None:
        peer.handshake()
        ends.append(peer.end())

    thread = threading.Thread(target=peer_story)
    thread.start()
    make_tls = partial(blocking.TlsStream, ssl_context=contexts.client)
    stream: object = blocking.call(connect, blocking.SocketStream, make_tls, ours)
    assert isinstance(stream, blocking.TlsStream)
    with stream:
        stream.send_all(b"blocking again")
    thread.join()
    assert ends[0].is_clean
    assert ends[0].data == b"blocking again"


def test_d6_unwrap(contexts: Contexts) -> None:
    async def leave(stream: ringtls.TlsStream) -> bytes:
        transport, trailing = await stream.unwrap()
        async with transport:
            return trailing or await transport.receive_some()

    ours, theirs = tcp_pair()
    stream = blocking.TlsStream(blocking.SocketStream(ours), contexts.server, server_side=True)
    peer = Peer(theirs, contexts, server_side=False)

    def peer_story() -> None:
        peer.handshake()
        peer.send_close_notify()
        with theirs:
            theirs.sendall(b"plain")
            while theirs.recv(1000):
                pass

    thread = threading.Thread(target=peer_story)
    thread.start()
    assert blocking.call(leave, stream) == b"plain"
    thread.join()


# What needs an event loop


class Bare:
    """An awaitable of the user's own that suspends."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def sleeps_in_trio() -> None:
    await trio.sleep(1)


async def opens_a_nursery() -> None:
    async with trio.open_nursery():
        pass


async def has_a_deadline() -> None:
    with trio.fail_after(1):
        await Bare()


async def sleeps_in_asyncio() -> None:
    await asyncio.sleep(1)


async def yields_in_asyncio() -> None:
    await asyncio.sleep(0)


async def awaits_its_own() -> None:
    await Bare()


async def must_complete() -> None:
    await ringtls.must_complete(Bare)


async def closes_several() -> None:
    await ringtls.aclose_all()


NEEDS_A_LOOP = {
    "trio.sleep": sleeps_in_trio,
    "trio.open_nursery": opens_a_nursery,
    "trio.fail_after": has_a_deadline,
    "asyncio.sleep": sleeps_in_asyncio,
    "ringtls.must_complete": must_complete,
    "ringtls.aclose_all": closes_several,
    "Bare.__await__": awaits_its_own,
}


@pytest.mark.parametrize("name", NEEDS_A_LOOP)
def test_d6_what_needs_an_event_loop_is_named(name: str) -> None:
    function = NEEDS_A_LOOP[name]
    with pytest.raises(RuntimeError, match="needs an event loop") as caught:
        blocking.call(function)
    assert name in str(caught.value)
    assert f"in {function.__qualname__}" in str(caught.value)
    assert __file__ in str(caught.value)


def test_d6_asyncios_bare_yield_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"asyncio\.sleep needs an event loop"):
        blocking.call(yields_in_asyncio)


@pytest.mark.parametrize("function", [sleeps_in_trio, yields_in_asyncio])
def test_d6_the_ends_are_made_all_the_same(
    connection: Connection, function: Callable[[], Awaitable[None]]
) -> None:
    async def go_wrong(stream: ringtls.TlsStream) -> None:
        async with stream:
            await stream.send_all(b"before")
            await function()

    with pytest.raises(RuntimeError, match="needs an event loop"):
        blocking.call(go_wrong, connection.stream)
    end = connection.end()
    assert end.is_clean
    assert end.data == b"before"


def test_d6_a_runtime_error_of_the_function_is_its_own() -> None:
    async def fail() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        blocking.call(fail)


def test_d6_inside_of_a_trio_run(contexts: Contexts) -> None:
    """It has the thread to itself, and the run's own tasks wait; but it is no part of the run."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"trio\.sleep needs an event loop"):
            blocking.call(sleeps_in_trio)
        await trio.lowlevel.checkpoint()

    trio.run(main)
