"""C19, C20: what a peer can make us hold, and what an idle connection costs."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from trio.to_thread import run_sync as in_thread

from ringtls import TlsStream, aclose_all
from ringtls._streams.session import CHUNK_SIZE, LARGEST_RECORD, MOST_WAITING, TlsSession
from ringtls._streams.tls import PIECE
from ringtls._transports.base import ANSWER_LIMIT, HIGH_WATER, BaseTransport

from ..conftest import Contexts
from ..support.faces import FACES, Face
from ..support.key_updates import ANSWER_SIZE, client_records
from ..support.peer import Meet, Peer, meet
from ..support.streams import handshaken, tcp_pair
from ..support.waiting import LIMIT, closed_while_it_waits, cut_off, until
from ..test_session import carry, sessions

#: Bytes of input that a session reads in one call at most, once it has answered.
ONE_LOOK = max(MOST_WAITING, LARGEST_RECORD + CHUNK_SIZE)

#: Bytes that TLS adds to a piece, and more.
RECORD_OVERHEADS = PIECE // 100

#: Bytes of answers that come on top of what is unsent, at most.
MOST_ON_TOP = ANSWER_LIMIT + ONE_LOOK

#: Key updates whose answers are twice as much. One takes OpenSSL some 100 microseconds.
MANY = 2 * MOST_ON_TOP // ANSWER_SIZE

#: Bytes that the kernel is to hold for a socket. With much less TCP takes its time.
BUFFER_SIZE = 32768

#: Where struct tcp_info has the number of segments that were sent (linux/tcp.h).
SEGMENTS_OUT = 136


@pytest.fixture
def logged(contexts: Contexts, tmp_path: Path) -> Contexts:
    """TLS 1.3, and the client's secrets in a file."""
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    contexts.client.keylog_filename = str(tmp_path / "keys")
    return contexts


def records_of(contexts: Contexts) -> Any:
    assert contexts.client.keylog_filename is not None
    return client_records(Path(contexts.client.keylog_filename))


# The session alone


def test_c19_one_read_makes_few_answers(logged: Contexts) -> None:
    _, server = sessions(logged)
    server.write(b"what the session tickets go with")
    server.take_output()
    records = records_of(logged)
    server.feed(records.key_updates(MANY) + records.data(b"after them"))
    answered = looks = 0
    while (data := server.read(100)) is None:
        assert server.has_ciphertext  # and so it goes on without more input
        answers = len(server.take_output())
        assert 0 < answers <= ONE_LOOK
        answered += answers
        looks += 1
    assert data == b"after them"
    answered += len(server.take_output())
    assert answered >= (MANY - 1) * ANSWER_SIZE
    assert looks >= MANY * ANSWER_SIZE // ONE_LOOK


def test_c19_answers_between_data(logged: Contexts) -> None:
    """What is received with them does not make one call answer more."""
    _, server = sessions(logged)
    server.write(b"what the session tickets go with")
    server.take_output()
    records = records_of(logged)
    count = MANY // 10
    server.feed(b"".join(records.key_updates(10) + records.data(b"x") for _ in range(count)))
    received = b""
    while len(received) < count:
        received += server.read(count) or b""
        assert len(server.take_output()) <= ONE_LOOK
    assert received == b"x" * count


def test_c19_a_half_close_keeps_what_comes_after_answers(logged: Contexts) -> None:
    _, server = sessions(logged)
    records = records_of(logged)
    server.feed(records.key_updates(MANY) + records.data(b"after them"))
    server.close_output(keep_unread=True)
    assert server.close_notify_sent
    assert server.read(100) == b"after them"


class Mallinfo(ctypes.Structure):
    """struct mallinfo2"""

    _fields_: ClassVar = [
        *((f"_unused_{number}", ctypes.c_size_t) for number in range(4)),
        ("in_mappings", ctypes.c_size_t),
        *((f"_unused_{number}", ctypes.c_size_t) for number in range(5, 7)),
        ("in_arenas", ctypes.c_size_t),
        *((f"_unused_{number}", ctypes.c_size_t) for number in range(8, 10)),
    ]


def allocated() -> int:
    """Bytes that malloc has given out."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not tell what is allocated")
    libc.mallinfo2.restype = Mallinfo
    gc.collect()
    info = libc.mallinfo2()
    if not info.in_arenas:
        pytest.skip("another allocator takes malloc's place, as that of AddressSanitizer")
    return int(info.in_arenas + info.in_mappings)


def burst(source: TlsSession, destination: TlsSession) -> None:
    for _ in range(4):
        source.write(bytes(PIECE))
        carry(source, destination)
        received = 0
        while received < PIECE:
            received += len(destination.read(PIECE) or b"")


def test_c20_a_session_costs_what_it_cost_before(versioned_contexts: Contexts) -> None:
    first, second = sessions(versioned_contexts)
    burst(first, second)  # what is the thread's is there from now on
    before = allocated()
    pairs = [sessions(versioned_contexts) for _ in range(20)]
    idle = allocated() - before
    for client, server in pairs:
        burst(client, server)
        burst(server, client)
    assert allocated() - before < 2 * idle


async def exchange(source: TlsStream, destination: TlsStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send_all, bytes(4 * PIECE))
        received = 0
        while received < 4 * PIECE:
            received += len(await destination.receive_some())
    await source.wait_sent()


async def test_c20_a_connection_costs_what_it_cost_before(versioned_contexts: Contexts) -> None:
    """With its transport and what the engine has of it."""
    first = await handshaken(versioned_contexts)
    await exchange(*first)  # what is the run's is there from now on
    before = allocated()
    pairs = [await handshaken(versioned_contexts) for _ in range(20)]
    idle = allocated() - before
    for client, server in pairs:
        await exchange(client, server)
        await exchange(server, client)
    assert allocated() - before < 2 * idle
    await aclose_all(*first, *chain.from_iterable(pairs))


def test_c20_what_came_in_small_pieces_takes_no_more(contexts: Contexts) -> None:
    """Input that nobody reads: a peer can choose the size of its segments."""
    client, server = sessions(contexts)
    client.write(bytes(1 << 20))
    ciphertext = memoryview(client.take_output())
    for start in range(0, len(ciphertext), 20):
        server.feed(ciphertext[start : start + 20])
    assert server.unread_input == len(ciphertext)
    assert len(server._backlog) <= 2 * len(ciphertext) // CHUNK_SIZE


class Interrupted:
    """An SSLObject, with something else done before every other read, and after each write."""

    def __init__(self, ssl_object: ssl.SSLObject, interrupt: Callable[[], object]) -> None:
        self._object = ssl_object
        self._interrupt = interrupt
        self._reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object, name)

    def read(self, *arguments: Any) -> Any:
        self._reads += 1
        if self._reads % 2:
            self._interrupt()
        return self._object.read(*arguments)

    def write(self, data: Any) -> int:
        written = self._object.write(data)
        self._interrupt()
        return written


def test_a_call_in_the_middle_of_anothers(contexts: Contexts) -> None:
    """As a finalizer or a signal's handler makes it: the thread's memory BIOs are in use."""
    others = sessions(contexts)
    heard = []

    def talk() -> None:
        client, server = others
        client.write(b"hello" * 10_000)
        carry(client, server)
        heard.append(server.read(100_000))

    pair = sessions(contexts)
    for session in pair:
        session.object = Interrupted(session.object, talk)  # type: ignore[assignment]
    client, server = pair
    for _ in range(3):
        for source, destination in ((client, server), (server, client)):
            source.write(b"all is well")
            carry(source, destination)
            assert destination.read(100) == b"all is well"
    assert heard
    assert set(heard) == {b"hello" * 10_000}


def test_a_call_in_the_middle_of_anothers_handshake(contexts: Contexts) -> None:
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    others = sessions(contexts)

    def talk(*_: object) -> None:
        client, server = others
        client.write(b"hello")
        carry(client, server)
        assert server.read(100) == b"hello"

    contexts.server.sni_callback = talk
    client, server = sessions(contexts)
    server.write(b"all is well")
    carry(server, client)
    assert client.read(100) == b"all is well"


def test_another_thread_is_refused_before_anything_happens(contexts: Contexts) -> None:
    client, server = sessions(contexts)
    refused = []

    def write() -> None:
        with pytest.raises(RuntimeError, match="thread"):
            client.write(b"from elsewhere")
        refused.append(True)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert refused
    client.write(b"from here")
    carry(client, server)
    assert server.read(100) == b"from here"


# Streams


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when somebody waits until less is unsent."""
    event = threading.Event()
    for kind in [BaseTransport, *BaseTransport.__subclasses__()]:
        if "has_unsent" in vars(kind):
            _watch(monkeypatch, kind, event)
    return event


def _watch(monkeypatch: pytest.MonkeyPatch, kind: Any, event: threading.Event) -> None:
    original = kind.has_unsent

    def watched(self: BaseTransport, least: int) -> bool:
        unsent: bool = original(self, least)
        if unsent and least == HIGH_WATER:
            event.set()
        return unsent

    monkeypatch.setattr(kind, "has_unsent", watched)


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What streams had unsent after each of their answers."""
    amounts = []
    answer = BaseTransport.answer

    def watched(self: BaseTransport, output: bytes) -> None:
        answer(self, output)
        amounts.append(self.unsent)

    monkeypatch.setattr(BaseTransport, "answer", watched)
    return amounts


def check(unsent: list[int]) -> None:
    """The stream's queue was full when the first answer came."""
    assert max(unsent) >= HIGH_WATER
    assert max(unsent) <= HIGH_WATER + PIECE + RECORD_OVERHEADS + MOST_ON_TOP


class Storm:
    """A client that asks for answers once the other side's queue is full. It reads when that waits
    for room, or has read all."""

    def __init__(
        self, peer: Peer, contexts: Contexts, full: threading.Event, held: threading.Event
    ) -> None:
        self._peer = peer
        self._full = full
        self._contexts = contexts
        self._held = held
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self) -> Storm:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()
        self._peer.sock.close()

    def _talk(self) -> None:
        self._peer.handshake()
        records = records_of(self._contexts)
        flood = records.key_updates(MANY) + records.data(b"after them")
        sender = threading.Thread(target=self._send, args=(flood,))
        self._full.wait(LIMIT)
        sender.start()
        self._held.wait(LIMIT)
        while self._peer.sock.recv(65536):
            pass
        sender.join()

    def _send(self, flood: bytes) -> None:
        self._peer.sock.sendall(flood)


@pytest.mark.parametrize("make_face", FACES)
@pytest.mark.parametrize(
    "into",
    [
        pytest.param(False, id="receive_some"),
        pytest.param(True, id="receive_into", marks=pytest.mark.long),
    ],
)
def test_c19_reading_waits_for_room(
    logged: Contexts,
    held: threading.Event,
    unsent: list[int],
    make_face: type[Face],
    into: bool,
) -> None:
    ours, theirs = tcp_pair(BUFFER_SIZE)
    received: list[bytes] = []

    async def story(face: Face) -> None:
        async with face.stream() as stream:
            while face.closing.transport.unsent < HIGH_WATER:
                await face.interrupted(stream, lambda: stream.send_all(bytes(10 * HIGH_WATER)))
            held.clear()
            unsent.clear()
            full.set()
            if into:
                buffer = bytearray(100)
                count = stream.receive_into(buffer)
                received.append(bytes(buffer[: count if isinstance(count, int) else await count]))
            else:
                received.append(await stream.receive_some())

    full = threading.Event()
    with Storm(Peer(theirs, logged, server_side=False), logged, full, held):
        make_face(ours, logged).play(story)
    assert received == [b"after them"]
    check(unsent)


async def test_c19_who_waits_for_room_can_be_cancelled(
    meet: Meet, logged: Contexts, held: threading.Event, unsent: list[int]
) -> None:
    stream, peer = await meet(logged, buffer_size=BUFFER_SIZE)
    await fill(stream, held)
    records = records_of(logged)
    flood = records.key_updates(MANY) + records.data(b"after them")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, partial(peer.sock.sendall, flood))
        for _ in range(2):
            held.clear()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(stream.receive_some)
                    await in_thread(held.wait, LIMIT)
                    scope.cancel()
            assert scope.cancelled_caught
        nursery.start_soon(in_thread, read_until_closed, peer)
        assert await stream.receive_some() == b"after them"
        await stream.aclose()
    peer.sock.close()
    check(unsent)


@pytest.mark.parametrize("method", ["receive_some", "unwrap"])
async def test_c19_a_close_wakes_who_waits_for_room(
    meet: Meet, logged: Contexts, held: threading.Event, method: str
) -> None:
    stream, peer = await meet(logged, buffer_size=BUFFER_SIZE)
    await fill(stream, held)
    flood = records_of(logged).key_updates(MANY)

    async def send() -> None:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await in_thread(peer.sock.sendall, flood)
            await in_thread(read_until_closed, peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(closed_while_it_waits, getattr(stream, method))
        assert await in_thread(held.wait, LIMIT)
        stream.close_unclean()
    peer.sock.close()


async def test_c19_who_only_looks_for_input(
    logged: Contexts, held: threading.Event, unsent: list[int]
) -> None:
    """A pool asks its idle connections again and again."""
    stream, peer = await meet(logged, buffer_size=BUFFER_SIZE)
    await fill(stream, held)
    records = records_of(logged)
    sender = threading.Thread(
        target=peer.sock.sendall, args=(records.key_updates(MANY) + records.data(b"after them"),)
    )
    sender.start()
    while not held.is_set():
        assert not stream.input_pending
        await trio.lowlevel.checkpoint()
    assert not stream.input_pending
    reader = threading.Thread(target=read_until_closed, args=(peer,))
    reader.start()
    await until(lambda: stream.input_pending)
    assert await stream.receive_some() == b"after them"
    await stream.aclose()
    for thread in (sender, reader):
        await in_thread(thread.join)
    peer.sock.close()
    check(unsent)


async def test_c19_data_alone_holds_no_reader_back(
    meet: Meet, logged: Contexts, held: threading.Event
) -> None:
    """A peer may read nothing before it has been read from."""
    stream, peer = await meet(logged, buffer_size=BUFFER_SIZE)
    await fill(stream, held)
    records = records_of(logged)
    for number in range(100):
        word = b"%d" % number
        await in_thread(peer.sock.sendall, records.key_update() + records.data(word))
        assert await stream.receive_some() == word
    stream.close_unclean()
    peer.sock.close()


async def fill(stream: TlsStream[Any], held: threading.Event) -> None:
    """Send what the peer does not read, until a sender waits."""
    while stream._transport.unsent < HIGH_WATER:
        await cut_off(stream.send_all, bytes(10 * HIGH_WATER))
    held.clear()


def read_until_closed(peer: Peer) -> None:
    while peer.sock.recv(65536):
        pass


# A client without TCP_NODELAY sends its first request when its Finished is acknowledged


def unacknowledged(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    assert isinstance(count, int)
    return count


def segments_sent(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS_OUT + 4)
    (count,) = struct.unpack_from("I", info, SEGMENTS_OUT)
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("make_face", FACES)
def test_the_clients_last_message_is_acknowledged(
    contexts: Contexts, make_face: type[Face]
) -> None:
    """And not by the timer of the kernel: that would be one more segment, later on."""
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    ours, theirs = tcp_pair()
    peer = Peer(theirs, contexts, server_side=False)
    thread = threading.Thread(target=peer.handshake)
    thread.start()

    async def story(face: Face) -> None:
        async with face.stream() as stream:
            await stream.do_handshake()
            sent = segments_sent(stream.transport_stream.socket)
            thread.join()
            while unacknowledged(theirs):
                pass
            assert segments_sent(stream.transport_stream.socket) == sent

    make_face(ours, contexts).play(story)
    peer.end()
