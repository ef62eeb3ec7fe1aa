"""What holds of a stream below TLS that is not ours: C1, C10, C16, C17, C18 over the adapter."""

from __future__ import annotations

import gc
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, SocketStream, TlsStream
from ringtls._transports import stream as stream_transport
from ringtls._transports.stream import StreamTransport

from ..conftest import Contexts
from ..support.peer import Peer, adapted_socket_stream, trio_socket_stream
from ..support.streams import handshaken, reset, tcp_pair
from ..support.waiting import LIMIT, until
from ..test_adapter import over

AnyTls = TlsStream[trio.abc.Stream]


class Faulty(trio.abc.HalfCloseableStream):
    """A user's stream over another; a method can be made to raise."""

    def __init__(self, below: trio.abc.HalfCloseableStream):
        self.below = below
        self.faults: dict[str, BaseException] = {}
        self.is_closed = False

    def _fail(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._fail("send_all")
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.below.receive_some(max_bytes)
        self._fail("receive_some")
        return data

    async def send_eof(self) -> None:
        self._fail("send_eof")
        await self.below.send_eof()

    async def aclose(self) -> None:
        self.is_closed = True
        await self.below.aclose()
        self._fail("aclose")


class FaultyWithoutHalves(trio.abc.Stream):
    """The same, as a stream that can't half-close."""

    def __init__(self, whole: Faulty) -> None:
        self._whole = whole

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._whole.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._whole.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._whole.aclose()


@pytest.fixture
async def deadline() -> AsyncIterator[None]:
    """Nothing in these tests may hang."""
    with trio.fail_after(LIMIT):
        yield


pytestmark = pytest.mark.usefixtures("deadline")


async def faulty(
    contexts: Contexts, kind: Callable[[Faulty], trio.abc.Stream] = lambda stream: stream
) -> tuple[Faulty, AnyTls, AnyTls]:
    left, right = trio.testing.memory_stream_pair()
    below = Faulty(left)
    client, server = await over(kind(below), right, contexts)
    return below, client, server


# C3


@pytest.mark.parametrize("below", ["memory", "TLS in memory", "TLS"])
async def test_c3_no_time_at_all_over_a_stream_that_need_not_wait(
    contexts: Contexts, below: str
) -> None:
    if below == "TLS":
        pair: tuple[trio.abc.Stream, trio.abc.Stream] = await handshaken(contexts)
    else:
        pair = trio.testing.memory_stream_pair()
    if below == "TLS in memory":
        pair = await over(*pair, contexts)
    client, server = await over(*pair, contexts)
    await client.send_all(b"last words")
    await client.aclose(shutdown_timeout=0)
    assert client.close_outcome is CloseOutcome.CLEAN
    assert await server.receive_some() == b"last words"
    assert await server.receive_some() == b""
    await server.aclose()


# C16


class OfNoKind(BaseException):
    """What nobody expects."""


RAISED = [
    KeyError("made up"),
    MemoryError(),
    OfNoKind(),
    KeyboardInterrupt(),
    SystemExit(1),
    BaseExceptionGroup("several", [KeyError(), OfNoKind()]),
    trio.BrokenResourceError("made up"),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize(
    ("where", "outcome"),
    [
        ("send_all", CloseOutcome.PEER_RESET),
        ("send_eof", CloseOutcome.PEER_RESET),
        ("aclose", CloseOutcome.CLEAN),
        ("receive_some", CloseOutcome.CLEAN),
    ],
)
async def test_c16_a_stream_that_raises_anything_at_the_end(
    contexts: Contexts,
    caplog: pytest.LogCaptureFixture,
    where: str,
    outcome: CloseOutcome,
    raised: BaseException,
) -> None:
    below, client, server = await faulty(contexts)
    below.faults[where] = raised
    with caplog.at_level(logging.INFO, "ringtls"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            nursery.start_soon(server.aclose)
    assert client.close_outcome is outcome
    assert below.is_closed
    if outcome is CloseOutcome.CLEAN and isinstance(raised, trio.BrokenResourceError):
        assert ("made up" in caplog.text) == (where == "aclose")
    else:
        assert "stream below" in caplog.text or "peer reset" in caplog.text


async def test_c16_a_stream_whose_receives_never_wait(contexts: Contexts) -> None:
    """It keeps to none of trio's rules: no cancellation comes out of it."""
    below, client, server = await faulty(contexts)
    is_over = False

    async def receive_some(max_bytes: int | None = None) -> bytes:
        return b"" if is_over else b"x"

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    await server.aclose()
    before = tasks()
    below.receive_some = receive_some  # type: ignore[method-assign]
    try:
        await client.aclose(shutdown_timeout=0.1)
        await until(lambda: tasks() <= before)
    finally:
        is_over = True


async def test_c16_a_sender_and_a_receiver_are_told(contexts: Contexts) -> None:
    below, client, server = await faulty(contexts)
    below.faults["send_all"] = OfNoKind()

    async def is_told(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await call()

    async with trio.open_nursery() as nursery:
        await client.send_all(b"x")
        nursery.start_soon(is_told, client.wait_sent)
        await wait_all_tasks_blocked()
    await is_told(lambda: client.send_all(b"y"))
    await client.aclose()
    await server.aclose()


async def test_c16_memory_is_short_where_input_is_passed_on(contexts: Contexts) -> None:
    """The input has a gap then: nothing after it may be taken for what the peer sent."""
    _, client, server = await faulty(contexts)
    calls: list[object] = []

    def sink(data: object) -> None:
        calls.append(data)
        raise MemoryError

    transport = client._transport
    assert isinstance(transport, StreamTransport)
    transport.attach(sink, lambda: None)
    await server.send_all(b"lost")
    with pytest.raises(MemoryError):
        await client.receive_some()
    await server.send_all(b"after the gap")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    assert len(calls) == 1
    client.close_unclean()
    await server.aclose()


@pytest.mark.parametrize("which", [1, 2, 3, 4])
async def test_c16_a_task_that_can_not_be_started(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    below, client, server = await faulty(contexts)
    transport = client._transport
    assert isinstance(transport, StreamTransport)
    start_task = transport.driver.start_task
    left = [which]

    def start_or_fail(function: Callable[[], Awaitable[None]]) -> None:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        start_task(function)

    monkeypatch.setattr(transport.driver, "start_task", start_or_fail)
    await client.send_all(b"x")
    await client.aclose()
    await server.aclose()
    assert left[0] <= 0
    assert client.close_outcome is not None
    assert server.close_outcome is not None


@pytest.mark.parametrize("which", [1, 2, 3])
async def test_c16_an_exception_where_a_task_is_started(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The task of a send, of the end, and of the input: none is waited for that does not run."""
    below, client, server = await faulty(contexts)
    client.shutdown_timeout = 3600
    start = StreamTransport._start
    left = [which]

    def raise_or_start(self: StreamTransport, *arguments: Any) -> bool:
        if self is client._transport:
            left[0] -= 1
            if not left[0]:
                raise MemoryError
        return start(self, *arguments)

    monkeypatch.setattr(StreamTransport, "_start", raise_or_start)
    with suppress(MemoryError):
        await client.send_all(b"x")
    with suppress(MemoryError):
        await client.aclose()
    await client.aclose()
    assert left[0] <= 0
    assert below.is_closed
    assert client.close_outcome in (CloseOutcome.CLEAN, CloseOutcome.CRASHED)
    if client.close_outcome is CloseOutcome.CLEAN:
        assert await server.receive_some() == b"x"
    await server.aclose()


async def test_c16_a_logging_filter_that_raises(contexts: Contexts) -> None:
    below, client, server = await faulty(contexts)
    below.faults["send_all"] = KeyError("made up")
    logger = logging.getLogger("ringtls")

    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("a bug in the user's filter")

    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(refuse)
    try:
        await client.aclose()
        await server.aclose()
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)
    assert client.close_outcome is CloseOutcome.PEER_RESET
    assert below.is_closed


# How the stream's own end counts


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (OSError("made up"), CloseOutcome.PEER_RESET),
        (trio.ClosedResourceError("made up"), CloseOutcome.PEER_RESET),
        (TimeoutError(110, "made up"), CloseOutcome.TIMED_OUT),
        (trio.TooSlowError("made up"), CloseOutcome.TIMED_OUT),
    ],
)
async def test_c1_where_closing_is_all_there_is_of_fin_its_failure_is_the_outcome(
    contexts: Contexts,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
    outcome: CloseOutcome,
) -> None:
    below, client, server = await faulty(contexts, FaultyWithoutHalves)
    below.faults["aclose"] = raised
    with caplog.at_level(logging.INFO, "ringtls"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            nursery.start_soon(server.aclose)
    assert client.close_outcome is outcome
    assert "made up" in caplog.text
    assert outcome.value in caplog.text


async def test_c1_tls_in_tls_ends_as_the_outer_connection_did(contexts: Contexts) -> None:
    outer = await handshaken(contexts)
    client, server = await over(*outer, contexts)
    outer[0].close_unclean()
    await client.aclose()
    assert client.close_outcome is CloseOutcome.PEER_RESET
    await server.aclose()
    assert server.close_outcome is CloseOutcome.PEER_RESET


# C10 and C17: when aclose has returned, the stream is let go of


@pytest.fixture(params=["unread", "read"])
def leaves_unread(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "unread")


MAKES = {
    "socket": adapted_socket_stream,
    "stapled": lambda sock: trio.StapledStream(*[trio_socket_stream(sock)] * 2),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
async def test_c17_the_number_of_a_closed_socket_is_free(
    contexts: Contexts, leaves_unread: bool, make: Callable[[socket.socket], trio.abc.Stream]
) -> None:
    """1. A socket's connection is ended, and the peer does not end it. 2. Its owner has closed it,
    and the next connection gets its number. 3. That one works, and the peer of the first still
    gets all that was sent, though there was unread input."""
    numbers = []
    peers = []
    for _ in range(3):
        ours, theirs = tcp_pair()
        numbers.append(ours.fileno())
        peer = Peer(theirs, contexts, server_side=False)
        peers.append(peer)
        with ours:
            stream: AnyTls = TlsStream(make(ours), contexts.server, server_side=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, peer.handshake)
                nursery.start_soon(stream.do_handshake)
            if leaves_unread:
                await in_thread(peer.send, b"unread" * 1000)
            await stream.send_all(b"last words")
            await stream.aclose()
            assert ours.fileno() == -1
            assert stream.close_outcome is CloseOutcome.CLEAN
    for peer in peers:
        end = await in_thread(peer.end)
        assert end.is_clean, end
        assert end.data == b"last words"


async def test_c10_no_descriptor_is_left_to_linger_with(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    below = adapted_socket_stream(ours)
    stream: AnyTls = TlsStream(below, contexts.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        nursery.start_soon(stream.do_handshake)

    def dup(fd: int) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(socket, "dup", dup)
    monkeypatch.setattr(socket.socket, "dup", dup)
    await in_thread(peer.send, b"unread" * 1000)
    await stream.send_all(b"last words")
    await stream.aclose()
    end = await in_thread(peer.end)
    assert end.is_clean, end
    assert end.data == b"last words"


async def test_c10_a_socket_lingers_in_the_background(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that may take."""
    monkeypatch.setattr(stream_transport, "LINGER", 3600.0)
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    stream: AnyTls = TlsStream(
        adapted_socket_stream(ours), contexts.server, server_side=True, shutdown_timeout=7200
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, peer.handshake)
        nursery.start_soon(stream.do_handshake)
    await stream.aclose()
    assert (await in_thread(peer.end)).is_clean


async def test_c10_streams_in_memory_need_not_linger(
    contexts: Contexts, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = await over(*trio.testing.memory_stream_pair(), contexts)
    start = trio.current_time()
    await client.aclose()
    await server.aclose()
    assert trio.current_time() == start


async def test_c10_an_unknown_stream_waits_for_the_peers_end(
    contexts: Contexts, autojump_clock: trio.testing.MockClock
) -> None:
    _, client, server = await faulty(contexts)
    start = trio.current_time()
    await client.aclose()
    assert 0 < trio.current_time() - start <= 1.0
    await server.aclose()


# C18


async def broken_memory(contexts: Contexts) -> trio.abc.Stream:
    left, _ = trio.testing.memory_stream_pair()

    async def fail() -> None:
        raise KeyError("made up")

    left.send_stream.send_all_hook = fail
    return left


async def broken_pipes(contexts: Contexts) -> trio.abc.Stream:
    no_reader, ours = os.pipe()
    theirs, _kept_open = os.pipe()
    os.close(no_reader)
    return trio.StapledStream(trio.lowlevel.FdStream(ours), trio.lowlevel.FdStream(theirs))


@pytest.mark.parametrize("make", [broken_memory, broken_pipes])
@pytest.mark.parametrize("call", ["do_handshake", "receive_some", "send_eof", "unwrap"])
async def test_c18_a_handshake_that_can_not_be_sent(
    contexts: Contexts, make: Callable[[Contexts], Awaitable[trio.abc.Stream]], call: str
) -> None:
    stream = TlsStream(await make(contexts), contexts.client, server_hostname="localhost")
    with pytest.raises(trio.BrokenResourceError):
        await getattr(stream, call)()
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.PEER_RESET


async def test_c18_every_task_that_waits_for_the_handshake(contexts: Contexts) -> None:
    below, _ = trio.testing.memory_stream_pair()
    go = trio.Event()

    async def fail() -> None:
        await go.wait()
        raise OSError("made up")

    below.send_stream.send_all_hook = fail
    stream = TlsStream(below, contexts.client, server_hostname="localhost")
    told = []

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError, match="made up"):
            await stream.do_handshake()
        told.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        go.set()
    assert len(told) == 3
    await stream.aclose()


async def test_c18_an_unwrap_that_can_not_be_sent(contexts: Contexts) -> None:
    below, client, server = await faulty(contexts)
    below.faults["send_all"] = OSError("made up")
    with pytest.raises(trio.BrokenResourceError, match="made up"):
        await client.unwrap()
    await client.aclose()
    await server.aclose()


async def test_c18_a_receive_goes_on_and_gets_what_was_sent(contexts: Contexts) -> None:
    """The peer may have sent all it had to say before it broke the connection."""
    below, client, server = await faulty(contexts)
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await client.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        below.faults["send_all"] = OSError("made up")
        await client.send_all(b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError, match="made up"):
            await client.send_all(b"y")
        assert not received
        await server.send_all(b"said before")
    assert received == [b"said before"]
    await client.aclose()
    await server.aclose()


async def test_c18_an_alert_tells_more_than_a_failed_send(contexts: Contexts) -> None:
    """What has come is read first: it says why the peer left."""
    below, other = trio.testing.memory_stream_pair()

    async def fail() -> None:
        await other.send_all(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal, handshake_failure
        raise OSError("made up")

    below.send_stream.send_all_hook = fail
    stream = TlsStream(below, contexts.client, server_hostname="localhost")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await stream.do_handshake()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    await stream.aclose()


# Item: health checks


@pytest.mark.parametrize(
    ("below", "leave"),
    [
        (adapted_socket_stream, socket.socket.close),
        (SocketStream, socket.socket.close),
        (SocketStream, reset),
    ],
)
@pytest.mark.parametrize("said", [b"", b"\x16"])
async def test_a_peer_that_says_nothing_and_goes_is_no_event(
    contexts: Contexts,
    caplog: pytest.LogCaptureFixture,
    said: bytes,
    below: Callable[[socket.socket], trio.abc.Stream],
    leave: Callable[[socket.socket], None],
) -> None:
    ours, theirs = tcp_pair()
    with caplog.at_level(logging.DEBUG, "ringtls"):
        stream: AnyTls = TlsStream(below(ours), contexts.server, server_side=True)
        theirs.sendall(said)
        leave(theirs)
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
    levels = [record.levelno for record in caplog.records if " ended: " in record.message]
    assert levels == [logging.INFO if said else logging.DEBUG]
    gc.collect()
