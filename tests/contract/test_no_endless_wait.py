"""C16 and C18: nothing waits for ever. (An exception anywhere: test_exceptions.py.)"""

from __future__ import annotations

import errno
import logging
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

from ringtls import (
    CloseOutcome,
    SocketListener,
    SocketStream,
    TlsStream,
    TruncationError,
    _accepting,
    blocking,
    relay,
    serve_tls_over_tcp,
    statistics,
)
from ringtls._drivers.trio import TrioDriver
from ringtls._engine.descriptors import unacknowledged
from ringtls._engine.request import Request
from ringtls._engine.ring import Ring
from ringtls._streams.acceptor import Acceptor
from ringtls._streams.session import TlsSession

from ..conftest import Contexts
from ..support.clogging import clog
from ..support.faces import BlockingFace, Face, TrioFace
from ..support.injection import InjectedError
from ..support.peer import End, Meet, Peer, Transport, meet
from ..support.streams import handshaken, socket_streams, tcp_pair
from ..support.tracing import traced_by
from ..support.waiting import LIMIT, closed_while_it_waits, until


class RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise ValueError("a bug in the user's filter")


async def test_c16_a_logging_filter_that_raises(
    contexts: Contexts, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is called in a callback of the ring, when the timeout of a close is over."""
    stream, peer = await meet(contexts, buffer_size=16384, shutdown_timeout=0.05)
    good, good_peer = await meet(contexts)
    logger = logging.getLogger("ringtls")
    bad = RaisingFilter()
    logger.addFilter(bad)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        await clog(stream)
        await stream.aclose()
    finally:
        logger.removeFilter(bad)
        logger.setLevel(level)
    assert stream.close_outcome is CloseOutcome.TIMED_OUT
    assert "a bug in the user's filter" in capsys.readouterr().err
    async with good:
        await good.send_all(b"alive")
        assert await trio.to_thread.run_sync(good_peer.receive, 5) == b"alive"
    peer.sock.close()
    good_peer.sock.close()


async def test_c16_a_logging_filter_that_raises_in_a_server(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is called where no descriptor is left for a connection. The next ones are served."""
    monkeypatch.setattr(_accepting._records, "_next_at", 0.0)
    monkeypatch.setattr(_accepting, "SHORTAGE_PAUSE", 0.0)
    run, refusals = Acceptor.run, [errno.EMFILE]

    async def refuse_at_first(acceptor: Acceptor, wait: Callable[[], Awaitable[None]]) -> None:
        if refusals:
            raise OSError(refusals.pop(), "no descriptor is left")
        await run(acceptor, wait)

    monkeypatch.setattr(Acceptor, "run", refuse_at_first)
    logger, bad = logging.getLogger("ringtls"), RaisingFilter()
    logger.addFilter(bad)
    try:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_tls_over_tcp, TlsStream.do_handshake, 0, contexts.server)
            [listener] = await nursery.start(partial(serve, host="127.0.0.1"))
            address = listener.transport_listener.socket.getsockname()
            peer = Peer(socket.create_connection(address), contexts, server_side=False)
            await trio.to_thread.run_sync(peer.handshake)
            end = await trio.to_thread.run_sync(peer.end)
            nursery.cancel_scope.cancel()
    finally:
        logger.removeFilter(bad)
    assert end.is_clean
    assert not refusals
    assert "a bug in the user's filter" in capsys.readouterr().err


def run_out_of_memory(self: TlsSession, *, keep_unread: bool) -> None:
    raise MemoryError


async def assert_only_one_is_reset(peer: Peer, good: TlsStream[Any], good_peer: Peer) -> None:
    end = await trio.to_thread.run_sync(peer.end)
    assert (end.close_notify, end.transport) == (False, Transport.RST)
    await good.aclose()
    assert (await trio.to_thread.run_sync(good_peer.end)).is_clean


async def test_c16_an_exception_in_the_end(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes out of aclose; who else waits is woken, and the peer sees a break."""
    stream, peer = await meet(contexts)
    good, good_peer = await meet(contexts)

    monkeypatch.setattr(TlsSession, "close_output", run_out_of_memory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(MemoryError):
            await stream.aclose()
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CRASHED
    await until(lambda: statistics().closings.get(CloseOutcome.CRASHED) == 1)
    monkeypatch.undo()
    await assert_only_one_is_reset(peer, good, good_peer)


async def test_c16_an_exception_in_an_end_that_a_closed_socket_begins(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could catch it: it would end the run."""
    stream, peer = await meet(contexts)
    good, good_peer = await meet(contexts)

    monkeypatch.setattr(TlsSession, "close_output", run_out_of_memory)
    stream.transport_stream.socket.close()
    await until(lambda: stream.close_outcome is not None)
    monkeypatch.undo()
    assert stream.close_outcome is CloseOutcome.CRASHED
    await assert_only_one_is_reset(peer, good, good_peer)


async def test_c16_an_exception_where_a_listener_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(ring: Ring, fd: int, **options: object) -> Request:
        monkeypatch.undo()
        raise MemoryError

    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = SocketListener(sock)
        monkeypatch.setattr(Ring, "close_fd", fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_while_it_waits, listener.accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.socket.close()


def test_c16_an_end_that_never_comes_is_given_up(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait at the end of the run is bounded, whatever has gone wrong."""
    monkeypatch.setattr("ringtls._drivers.end_of_run.LATE", 0.05)
    monkeypatch.setattr(
        "ringtls._streams.closing.Closing._released", lambda self, *, acknowledged: None
    )

    async def main() -> None:
        stream, peer = await meet(contexts, shutdown_timeout=0.05)
        await stream.aclose()
        peer.sock.close()

    trio.run(main)


@pytest.mark.parametrize("face", [TrioFace, BlockingFace])
def test_c16_an_end_that_nobody_looked_after_is_not_given_up(
    contexts: Contexts, caplog: pytest.LogCaptureFixture, face: type[Face]
) -> None:
    """Its time was over long before the end of the run, or thread, which nothing drove since."""
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    ends: list[End] = []

    def peer_story() -> None:
        peer.handshake()
        ends.append(peer.end())

    async def story(face: Face) -> None:
        async with face.stream() as stream:
            await stream.send_all(b"all of it")
        face.closing.deadline = 0.0

    thread = threading.Thread(target=peer_story)
    thread.start()
    face(ours, contexts).play(story)
    thread.join()
    assert ends[0].is_clean
    assert "in time" not in caplog.text


class Once:
    """Calls a function, and raises after its first call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.has_raised = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        result = self.function(*arguments, **options)
        if not self.has_raised:
            self.has_raised = True
            raise MemoryError
        return result


async def test_c16_a_request_that_an_exception_kept_from_its_maker(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring has the request that closes the descriptor, and the transport does not know it: it
    is found, and does not outlive the descriptor (C17)."""
    stream, peer = await meet(contexts, shutdown_timeout=3600)
    ring = TrioDriver.current().ring
    monkeypatch.setattr(ring, "close_fd", Once(ring.close_fd))
    with pytest.raises(MemoryError):
        await stream.aclose()
    end = await trio.to_thread.run_sync(peer.end)
    assert end.transport is Transport.RST
    await until(lambda: not statistics().connections_closing)
    assert ring.in_flight == 0


async def test_c16_an_end_that_was_interrupted_while_it_was_reported(
    contexts: Contexts, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported again: neither who closes nor the run waits for it."""
    stream, peer = await meet(contexts, shutdown_timeout=3600)
    driver = TrioDriver.current()
    unregister = Once(driver.unregister)
    monkeypatch.setattr(driver, "unregister", unregister)
    await stream.aclose()
    await trio.to_thread.run_sync(peer.end)
    await until(lambda: not statistics().connections_closing)
    assert unregister.has_raised


async def test_c16_trio_removes_an_instrument_that_raises(contexts: Contexts) -> None:
    """The driver is put back, and nothing is lost."""
    client, server = await handshaken(contexts)
    trio.lowlevel.remove_instrument(TrioDriver.current())
    async with client, server:
        await client.send_all(b"still here")
        assert await server.receive_some() == b"still here"


# C18


@pytest.mark.parametrize("what", ["do_handshake", "unwrap"])
async def test_c18_a_send_that_failed_wakes_who_waits_for_its_answer(
    contexts: Contexts, what: str
) -> None:
    """The peer reads no more, and keeps its sending side open."""
    ours, theirs = socket.socketpair()
    client: TlsStream[Any] = TlsStream(
        SocketStream(ours), contexts.client, server_hostname="localhost"
    )
    if what == "unwrap":
        server = TlsStream(SocketStream(theirs), contexts.server, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        server.transport_stream.socket.shutdown(socket.SHUT_RD)
    else:
        theirs.shutdown(socket.SHUT_RD)
    with pytest.raises(trio.BrokenResourceError):
        await getattr(client, what)()
    await client.aclose()
    if what == "unwrap":
        await server.aclose()
    theirs.close()


def test_c18_on_the_blocking_face(contexts: Contexts) -> None:
    ours, theirs = socket.socketpair()
    theirs.shutdown(socket.SHUT_RD)
    with (
        blocking.TlsStream(
            blocking.SocketStream(ours), contexts.client, server_hostname="localhost"
        ) as stream,
        pytest.raises(trio.BrokenResourceError),
    ):
        stream.do_handshake()
    theirs.close()


# Another thread is refused before anything has happened


CALLS: dict[str, Callable[[TlsStream], Any]] = {
    "send_all": lambda stream: stream.send_all(b"lost?"),
    "receive_some": lambda stream: stream.receive_some(),
    "receive_into": lambda stream: stream.receive_into(bytearray(10)),
    "send_eof": lambda stream: stream.send_eof(),
    "unwrap": lambda stream: stream.unwrap(),
    "wait_sent": lambda stream: stream.wait_sent(),
    "wait_acknowledged": lambda stream: stream.wait_acknowledged(),
    "do_handshake": lambda stream: stream.do_handshake(),
    "aclose": lambda stream: stream.aclose(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_c16_another_threads_call_does_nothing(contexts: Contexts, name: str) -> None:
    client, server = await handshaken(contexts)

    async def foreign() -> None:
        with pytest.raises(RuntimeError, match="another thread"):
            await CALLS[name](client)

    def run() -> None:
        trio.run(foreign)

    await trio.to_thread.run_sync(run)
    async with client, server:
        await client.send_all(b"as if nothing had been")
        assert await server.receive_some() == b"as if nothing had been"
    assert client.close_outcome is CloseOutcome.CLEAN


async def test_c16_another_threads_close_unclean_does_nothing(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            client.close_unclean()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert len(errors) == 1
    async with client, server:
        pass
    assert client.close_outcome is CloseOutcome.CLEAN


@pytest.mark.parametrize("name", ["close_unclean", "reset_if_killed"])
async def test_c16_another_threads_call_of_a_socket_stream_does_nothing(
    pair: tuple[socket.socket, socket.socket], name: str
) -> None:
    ours, theirs = pair
    async with SocketStream(ours) as stream:
        linger = stream.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)

        def call() -> None:
            with pytest.raises(RuntimeError, match="another thread"):
                getattr(stream, name)()

        await trio.to_thread.run_sync(call)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
    theirs.settimeout(LIMIT)
    assert theirs.recv(1) == b""


SOCKET_CALLS: list[Callable[[SocketStream], Awaitable[object]]] = [
    lambda stream: stream.send_all(b"never"),
    lambda stream: stream.send_all(b""),
    lambda stream: stream.send_eof(),
    lambda stream: stream.wait_send_all_might_not_block(),
    lambda stream: stream.receive_some(),
    lambda stream: stream.receive_into(bytearray(1)),
    lambda stream: stream.peek(1),
    lambda stream: stream.aclose(),
]


async def test_c16_another_threads_use_of_a_socket_stream_does_nothing(contexts: Contexts) -> None:
    """What takes a stream over must not have it, either, where it is refused."""
    client, server = await socket_streams()

    async def foreign() -> None:
        with pytest.raises(RuntimeError, match="another thread"):
            TlsStream(client, contexts.client, server_hostname="localhost")
        with pytest.raises(RuntimeError, match="another thread"):
            await relay(client, server)
        for call in SOCKET_CALLS:
            with pytest.raises(RuntimeError, match="another thread"):
                await call(client)

    await trio.to_thread.run_sync(trio.run, foreign)
    async with client, server:
        await client.send_all(b"as if nothing had been")
        assert await server.receive_some() == b"as if nothing had been"


async def test_c16_another_threads_tls_over_a_tls_stream_does_nothing(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)

    async def foreign() -> None:
        with pytest.raises(RuntimeError, match="another thread"):
            TlsStream(client, contexts.client, server_hostname="localhost")

    await trio.to_thread.run_sync(trio.run, foreign)
    async with client, server:
        pass
    assert client.close_outcome is CloseOutcome.CLEAN


async def test_c16_another_threads_close_of_a_listener_does_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = SocketListener(sock)

        async def foreign() -> None:
            with pytest.raises(RuntimeError, match="another thread"):
                await listener.aclose()

        await trio.to_thread.run_sync(trio.run, foreign)
        with socket.create_connection(sock.getsockname()):
            await (await listener.accept()).aclose()
        await listener.aclose()


# What an exception may have cost of the input


DATA = bytes(50_000)


class Interrupted:
    """An SSLObject during whose second read a signal's handler raises."""

    def __init__(self, original: ssl.SSLObject) -> None:
        self._original = original
        self._reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def read(self, *arguments: Any) -> Any:
        result = self._original.read(*arguments)
        self._reads += 1
        if self._reads == 2:
            raise InjectedError
        return result


READS: dict[str, Callable[[TlsStream[Any]], Any]] = {
    "receive_some": TlsStream.receive_some,
    "receive_into": lambda stream: stream.receive_into(bytearray(len(DATA))),
    "send_eof": TlsStream.send_eof,
}


@pytest.mark.parametrize("name", READS)
async def test_c16_an_exception_while_something_is_decrypted_leaves_no_gap(
    contexts: Contexts, name: str
) -> None:
    """What comes behind it is not received as if nothing were missing; the end is clean."""
    left, right = trio.testing.memory_stream_pair()
    client = TlsStream(left, contexts.client, server_hostname="localhost")
    server = TlsStream(right, contexts.server, server_side=True)
    async with client, server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            await client.send_all(DATA)
            await client.wait_sent()
        await server.send_all(b"after the handshake")
        while server._session.unread_input < len(DATA):
            await server._transport.receive()
        server._session.object = Interrupted(server._session.object)  # type: ignore[assignment]
        with pytest.raises(InjectedError):
            await READS[name](server)
        assert server.input_pending
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="input is missing"):
                await server.receive_some()
    assert server.close_outcome is CloseOutcome.CLEAN


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("receive_some", "TlsStream._read"),
        ("receive_some", "cancel_shielded_checkpoint"),
        ("receive_into", "TlsStream._call_session"),
        ("receive_into", "cancel_shielded_checkpoint"),
        ("receive_into", "ConflictDetector.__exit__"),
    ],
)
async def test_c16_an_exception_when_something_was_decrypted_leaves_no_gap(
    contexts: Contexts, name: str, function: str
) -> None:
    """CPython looks for signals where a call has returned."""
    client, server = await handshaken(contexts)
    async with client, server:
        await client.send_all(DATA)
        await until(lambda: server.input_pending)
        with traced_by(partial(_raise_at_return_of, function)), pytest.raises(InjectedError):
            await READS[name](server)
        with pytest.raises(trio.BrokenResourceError, match="input is missing"):
            await server.receive_some()


def _raise_at_return_of(function: str, frame: FrameType, event: str, result: object) -> Any:
    if frame.f_code.co_qualname != function:
        return None
    if event == "return":
        sys.settrace(None)
        raise InjectedError
    return partial(_raise_at_return_of, function)


# What the peer's TCP has


async def test_wait_acknowledged(meet: Meet, contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = bytes(60_000)
    async with stream, trio.open_nursery() as nursery:
        await stream.send_all(data)
        await stream.wait_sent()
        waited = trio.Event()

        async def wait() -> None:
            await stream.wait_acknowledged()
            waited.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited.is_set()
        await trio.to_thread.run_sync(peer.receive, len(data))
        await waited.wait()
    peer.sock.close()


async def test_wait_acknowledged_where_the_runs_clock_stands_still(
    meet: Meet, contexts: Contexts, mock_clock: trio.testing.MockClock
) -> None:
    await test_wait_acknowledged(meet, contexts)


async def test_c3_nothing_is_lost_if_the_peers_end_came_first(contexts: Contexts) -> None:
    """Who has ended can't be reset by what it sends. As on any way that takes time, our last bytes
    are not acknowledged yet when the descriptor is closed."""
    stream, peer = await meet(contexts)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await stream.send_all(bytes(200_000))
    await stream.wait_sent()
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TruncationError):
        await stream.receive_some()
    await stream.aclose()
    while statistics().connections_closing:
        await trio.sleep(0.01)
    assert stream.close_outcome is CloseOutcome.CLEAN
    end = await trio.to_thread.run_sync(peer.end)
    assert end.is_clean
    assert end.data == bytes(200_000)


async def has_what_is_never_acknowledged(contexts: Contexts) -> TlsStream[Any]:
    """The kernel had all, the peer's TCP had not, and then it was reset."""
    stream, peer = await meet(contexts, shutdown_timeout=1e9)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await stream.send_all(bytes(200_000))
    await stream.wait_sent()
    assert unacknowledged(stream.transport_stream.socket.fileno())
    peer.vanish()
    return stream


async def test_c18_what_was_reset_is_not_acknowledged_any_more(contexts: Contexts) -> None:
    async with await has_what_is_never_acknowledged(contexts) as stream:
        with trio.fail_after(LIMIT), pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await stream.wait_acknowledged()


@contextmanager
def no_new_descriptors() -> Iterator[None]:
    """As a sandbox forbids them. poll(2) fails then."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_c18_where_no_descriptor_can_be_made(contexts: Contexts) -> None:
    async with await has_what_is_never_acknowledged(contexts) as stream:
        with no_new_descriptors(), trio.fail_after(LIMIT), pytest.raises(trio.BrokenResourceError):
            await stream.wait_acknowledged()


async def test_c21_where_no_descriptor_can_be_made(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    stream.reset_on_error = True
    with no_new_descriptors():
        with pytest.raises(ValueError, match="half an answer"):
            async with stream:
                await stream.send_all(bytes(100))
                raise ValueError("half an answer")
        await until(lambda: not statistics().connections_closing)
    end = await trio.to_thread.run_sync(peer.end)
    assert stream.close_outcome is CloseOutcome.BROKEN_OFF
    assert end.data == bytes(100)
    assert end.transport is Transport.RST


async def test_c16_an_end_does_not_wait_for_what_was_reset(contexts: Contexts) -> None:
    stream = await has_what_is_never_acknowledged(contexts)
    stream.reset_on_error = True
    with pytest.raises(ValueError, match="half an answer"):
        async with stream:
            raise ValueError("half an answer")
    await until(lambda: not statistics().connections_closing)


async def test_c3_an_end_that_was_not_acknowledged_says_so(contexts: Contexts) -> None:
    """A reader slower than the shutdown timeout: the kernel has all, the peer has not."""
    stream, peer = await meet(contexts, shutdown_timeout=0.1)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await stream.send_all(bytes(200_000))
    await stream.wait_sent()
    await stream.aclose()
    outcomes = [stream.close_outcome]
    assert not statistics().closings  # none is counted that may turn out to be another
    while statistics().connections_closing:
        await trio.sleep(0.01)
    outcomes.append(stream.close_outcome)
    assert outcomes == [CloseOutcome.CLEAN, CloseOutcome.UNACKNOWLEDGED]
    assert statistics().closings == {CloseOutcome.UNACKNOWLEDGED: 1}
    peer.sock.close()
