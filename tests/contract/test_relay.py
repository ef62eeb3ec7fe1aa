"""R1 to R6: what a relay passes on, and what each end of one side becomes on the other."""

from __future__ import annotations

import errno
import fcntl
import random
import re
import select
import socket
import ssl
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import (
    CloseOutcome,
    RelayDirection,
    RelayEnd,
    RelayOutcome,
    SocketStream,
    TlsStream,
    TruncationError,
    aclose_all,
    blocking,
    relay,
    statistics,
)
from ringtls._drivers.blocking import BlockingDriver
from ringtls._engine.descriptors import is_gone, unacknowledged
from ringtls._engine.ring import BUFFER_SIZE, BUFFERS
from ringtls._streams import relay_ends
from ringtls._streams.relay import relay_watched
from ringtls._streams.relay_directions import Relay
from ringtls._streams.relay_ends import ANSWERS
from ringtls._streams.relay_sides import Side
from ringtls._transports.base import HIGH_WATER

from ..conftest import Contexts
from ..support.clogging import ACCEPTED, SMALL, is_full
from ..support.peer import adapted_socket_stream, trio_socket_stream
from ..support.relaying import (
    BLOCKING_KINDS,
    END,
    KINDS,
    RESET,
    Kind,
    Meeting,
    Met,
    Part,
    Saw,
    Talker,
    TlsTalker,
    pair_name,
    play,
    play_blocking,
)
from ..support.signals import signal_in_the_ring
from ..support.streams import handshaken, open_sockets, reset, socket_streams, tcp_pair
from ..support.waiting import LIMIT, until, wait_until, when_all_wait

REQUEST = b"a question"
ANSWER = bytes(range(256)) * 1000
UPLOAD = ANSWER * 4

#: Bytes that the ring receives at once at most.
POOL = BUFFERS * BUFFER_SIZE

#: The client's TCP takes it all, though the client does not read.
SHORT_ANSWER = ANSWER[:20_000]


#: A private key takes OpenSSL some milliseconds to read.
of_version = cache(Contexts.of_version)


@dataclass(frozen=True)
class Between:
    """What a relay is between: streams of two kinds, on the face that they belong to."""

    a: Kind
    b: Kind
    is_blocking: bool
    version: ssl.TLSVersion

    def __str__(self) -> str:
        face = "blocking " if self.is_blocking else ""
        version = " 1.2" if self.version is ssl.TLSVersion.TLSv1_2 else ""
        return f"{face}{self.a.name} to {self.b.name}{version}"

    def relay(self, contexts: Contexts, client: Part, backend: Part, **options: Any) -> Met:
        play_face = play_blocking if self.is_blocking else play
        contexts = of_version(contexts, self.version)
        return play_face(contexts, (self.a, self.b), client, backend, **options)


#: All combinations of streams on both faces, and of each with TLS one with version 1.2.
ALL = [
    Between(a, b, is_blocking, version)
    for is_blocking, kinds in ((False, KINDS), (True, BLOCKING_KINDS))
    for a, b in product(kinds, kinds)
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2)
    if version is ssl.TLSVersion.TLSv1_3 or (a.tls and a is b)
]

every_combination = pytest.mark.parametrize("between", ALL, ids=str)
with_tls = pytest.mark.parametrize("between", [each for each in ALL if each.a.tls], ids=str)


def wait_acknowledged(talker: Talker) -> None:
    """Until the relay's TCP has all that was sent: what a reset destroys before is the peer's own
    affair."""
    wait_until(lambda: not unacknowledged(talker.sock.fileno()))


def send_and_reset(talker: Talker, data: bytes) -> None:
    talker.send(data)
    wait_acknowledged(talker)
    reset(talker.sock)


def is_over(sock: socket.socket) -> bool:
    """True once the connection was reset, or has ended in both directions; nothing is read."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(LIMIT * 1000))


def end(talker: Talker) -> Saw:
    """End in order, and read what is still said."""
    talker.half_close()
    return talker.read()


def read(talker: Talker) -> Saw:
    return talker.read()


def ask(talker: Talker) -> Saw:
    """Ask, read the answer to its end, then end too."""
    talker.send(REQUEST)
    saw = talker.read()
    with suppress(ConnectionError, ssl.SSLError):  # it was reset
        talker.half_close()
    return saw


# R1


@every_combination
def test_r1_all_bytes_both_ways_in_order(contexts: Contexts, between: Between) -> None:
    there = random.Random(1).randbytes(700_000)
    back = random.Random(2).randbytes(900_000)

    def talk(data: bytes, count: int) -> Callable[[Talker], Saw]:
        def part(talker: Talker) -> Saw:
            for start in range(0, len(data), 30_011):
                talker.send(data[start : start + 30_011])
            talker.half_close()
            return talker.read()

        return part

    met = between.relay(contexts, talk(there, len(back)), talk(back, len(there)))
    assert met.client == Saw(back, END)
    assert met.backend == Saw(there, END)
    assert met.outcome.is_orderly
    assert (met.outcome.a_to_b.bytes, met.outcome.b_to_a.bytes) == (len(there), len(back))


@pytest.mark.parametrize("kinds", list(product(KINDS[:2], KINDS[:2])), ids=pair_name)
def test_r1_a_stalled_side_holds_no_more_than_the_high_water_mark(
    contexts: Contexts, kinds: tuple[Kind, Kind]
) -> None:
    """TCP slows a source that floods, and nothing is lost. What is on its way is in the pool."""
    filled, flood = threading.Event(), bytes(2 * POOL)

    def client(talker: Talker) -> Saw:
        talker.handshake()
        talker.send(flood)
        return end(talker)

    def backend(talker: Talker) -> Saw:
        talker.handshake()
        assert filled.wait(LIMIT)
        saw = talker.read()
        talker.half_close()
        return saw

    meeting = Meeting(contexts, kinds, client, backend, buffer_size=8 * SMALL)
    held: list[int] = []

    async def main() -> None:
        a, b = meeting.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a, b)
            await until(lambda: b._transport.unsent >= HIGH_WATER)
            await until(lambda: is_full(meeting.client_socket))
            held.append(b._transport.unsent)
            filled.set()

    trio.run(main)
    _, backend_saw = meeting.join()
    assert backend_saw == Saw(flood, END)
    assert held[0] <= HIGH_WATER + POOL


# R2


@every_combination
def test_r2_an_end_becomes_an_end(contexts: Contexts, between: Between) -> None:
    def answer(talker: Talker) -> Saw:
        talker.receive(len(REQUEST))
        talker.send(ANSWER)
        return end(talker)

    met = between.relay(contexts, ask, answer)
    assert met.client == Saw(ANSWER, END)
    assert met.backend == Saw(b"", END)
    assert met.outcome.is_orderly


@every_combination
def test_r2_a_client_half_closes_and_reads_its_answer(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> Saw:
        talker.send(REQUEST)
        return end(talker)

    def backend(talker: Talker) -> Saw:
        saw = talker.read()
        talker.send(ANSWER)
        talker.half_close()
        return saw

    met = between.relay(contexts, client, backend)
    assert met.client == Saw(ANSWER, END)
    assert met.backend == Saw(REQUEST, END)
    assert met.outcome.is_orderly


@every_combination
def test_r2_a_backend_half_closes_and_reads_on(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> Saw:
        saw = talker.read()
        talker.send(UPLOAD)
        talker.half_close()
        return saw

    def backend(talker: Talker) -> Saw:
        talker.send(ANSWER)
        return end(talker)

    met = between.relay(contexts, client, backend)
    assert met.client == Saw(ANSWER, END)
    assert met.backend == Saw(UPLOAD, END)
    assert met.outcome.is_orderly


# R3


@every_combination
def test_r3_a_crash_in_mid_answer_is_no_end(contexts: Contexts, between: Between) -> None:
    def crash(talker: Talker) -> None:
        talker.receive(len(REQUEST))
        send_and_reset(talker, ANSWER)

    met = between.relay(contexts, ask, crash)
    assert met.client == Saw(ANSWER, RESET)
    assert met.outcome.b_to_a.end is RelayEnd.RESET
    assert met.outcome.b_to_a.reason == "ECONNRESET"
    assert met.outcome.a_to_b.end is RelayEnd.UNDELIVERED


@every_combination
def test_r3_a_client_that_resets(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> None:
        send_and_reset(talker, UPLOAD)

    met = between.relay(contexts, client, read)
    assert met.backend == Saw(UPLOAD, RESET)
    assert met.outcome.a_to_b.end is RelayEnd.RESET


@every_combination
def test_r3_a_backend_that_resets_while_it_is_sent_to(contexts: Contexts, between: Between) -> None:
    """The kernel tells of it once, and maybe the send that is in flight."""
    clients: list[socket.socket] = []

    def client(talker: Talker) -> Saw:
        clients.append(talker.sock)
        try:
            talker.send(bytes(4_000_000))
        except ConnectionResetError:  # BrokenPipeError: after an orderly end
            return Saw(b"", RESET)
        return talker.read()

    def backend(talker: Talker) -> None:
        talker.receive(1)
        wait_until(lambda: is_full(clients[0]))
        reset(talker.sock)

    met = between.relay(contexts, client, backend, buffer_size=SMALL)
    assert met.client == Saw(b"", RESET)
    assert met.outcome.b_to_a.end is RelayEnd.RESET
    assert met.outcome.a_to_b.end is RelayEnd.UNDELIVERED


@with_tls
def test_r3_a_truncated_upload_is_no_end(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> Saw:
        talker.send(UPLOAD)
        talker.sock.shutdown(socket.SHUT_WR)
        return talker.read()

    met = between.relay(contexts, client, read)
    assert met.backend == Saw(UPLOAD, RESET)
    assert met.client == Saw(b"", RESET)
    assert met.outcome.a_to_b.end is RelayEnd.TRUNCATED
    assert met.outcome.b_to_a.end is RelayEnd.UNDELIVERED


class Impatient(NamedTuple):
    """A relay whose side towards the client has no shutdown timeout, and both peers of it."""

    backend: socket.socket
    client: socket.socket
    relays: list[Relay]
    outcomes: list[RelayOutcome]


@asynccontextmanager
async def to_an_impatient_side(
    contexts: Contexts,
    a: Callable[[socket.socket], trio.abc.Stream],
    b: Callable[[socket.socket], trio.abc.Stream],
) -> AsyncIterator[Impatient]:
    """Have a relay from ``a`` to TLS over ``b``, and wait for its end."""
    backend, ours_a = tcp_pair()
    ours_b, client = tcp_pair(SMALL)
    impatient = Impatient(backend, client, [], [])

    async def pass_on() -> None:
        side = TlsStream(b(ours_b), contexts.server, server_side=True, shutdown_timeout=0)
        impatient.outcomes.append(await relay_watched(a(ours_a), side, impatient.relays.append))

    with backend, client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on)
            yield impatient


@pytest.mark.parametrize("stream", [SocketStream, adapted_socket_stream])
async def test_r3_a_truncated_upload_is_told_before_the_answer_is_read(
    contexts: Contexts, stream: Callable[[socket.socket], trio.abc.Stream]
) -> None:
    """With an idle timeout the client has time for the answer, whatever its shutdown timeout; and
    the server need not wait for that to hear of the break."""
    async with to_an_impatient_side(contexts, stream, stream) as impatient:
        client = TlsTalker(impatient.client, contexts, server_side=False)
        await trio.to_thread.run_sync(client.handshake)
        impatient.backend.sendall(bytes(ACCEPTED))
        impatient.backend.shutdown(socket.SHUT_WR)
        await until(lambda: impatient.relays[0].directions[0].end)
        impatient.client.shutdown(socket.SHUT_WR)
        await until(lambda: is_gone(impatient.backend.fileno()))
        with pytest.raises(ConnectionResetError):
            impatient.backend.recv(1)
        assert await trio.to_thread.run_sync(client.read) == Saw(bytes(ACCEPTED), END)
    assert impatient.outcomes[0].a_to_b.end is RelayEnd.ORDERLY
    assert impatient.outcomes[0].b_to_a.end is RelayEnd.TRUNCATED


@with_tls
def test_r3_a_bare_fin_is_an_end_if_its_owner_says_so(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> Saw:
        talker.send(UPLOAD)
        talker.sock.shutdown(socket.SHUT_WR)
        return talker.read()

    def backend(talker: Talker) -> Saw:
        saw = talker.read()
        talker.send(ANSWER)
        talker.half_close()
        return saw

    met = between.relay(contexts, client, backend, https_compatible=True)
    assert met.backend == Saw(UPLOAD, END)
    assert met.client == Saw(ANSWER, END)
    assert met.outcome.is_orderly


@pytest.mark.parametrize("how", ["crash", "end"])
@with_tls
def test_r3_what_is_not_taken_in_is_given_up(
    contexts: Contexts, between: Between, how: str
) -> None:
    """The client reads nothing until its connection is reset, after the shutdown timeout."""

    def client(talker: Talker) -> Saw:
        talker.half_close()
        assert is_over(talker.sock)
        return talker.read()

    def backend(talker: Talker) -> None:
        assert talker.read() == Saw(b"", END)  # and so the client has shaken hands
        if how == "crash":
            send_and_reset(talker, bytes(ACCEPTED))
        else:
            talker.send(bytes(ACCEPTED))
            talker.half_close()

    met = between.relay(contexts, client, backend, buffer_size=SMALL, shutdown_timeout=0.05)
    assert met.client is not None
    assert met.client.end == RESET
    assert len(met.client.data) < ACCEPTED
    expected = RelayEnd.RESET if how == "crash" else RelayEnd.UNDELIVERED
    assert met.outcome.b_to_a.end is expected


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_r3_a_crash_behind_a_client_that_reads_nothing(contexts: Contexts, kind: Kind) -> None:
    """More has come than the relay takes from its kernel. It is the client's, however late that
    reads, and the reset comes after it."""
    is_full, has_crashed = threading.Event(), threading.Event()
    taken: list[int] = []

    def client(talker: Talker) -> Saw:
        talker.handshake()
        assert has_crashed.wait(LIMIT)
        return talker.read()

    def crash(talker: Talker) -> None:
        sent = 0

        def send_what_is_taken() -> None:
            nonlocal sent
            with suppress(BlockingIOError):
                while True:
                    sent += talker.sock.send(bytes(SMALL))

        def is_filled() -> bool:
            send_what_is_taken()
            return is_full.is_set()

        talker.sock.setblocking(False)
        wait_until(is_filled)
        send_what_is_taken()
        not_acknowledged = fcntl.ioctl(talker.sock, termios.TIOCOUTQ, bytes(4))  # tcp(7)
        taken.append(sent - int.from_bytes(not_acknowledged, sys.byteorder))
        reset(talker.sock)
        has_crashed.set()

    meeting = Meeting(contexts, (kind, KINDS[1]), client, crash, buffer_size=SMALL)
    outcomes: list[RelayOutcome] = []

    async def relay_both(a: Any, b: Any) -> None:
        outcomes.append(await relay(a, b))

    async def main() -> None:
        a, b = meeting.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_both, a, b)
            await until(lambda: a._transport.unsent >= HIGH_WATER)
            is_full.set()

    trio.run(main)
    client_saw, _ = meeting.join()
    assert client_saw.end == RESET
    assert len(client_saw.data) >= taken[0] > HIGH_WATER
    assert outcomes[0].b_to_a.end is RelayEnd.RESET


@with_tls
def test_r3_a_tls_error(contexts: Contexts, between: Between) -> None:
    def client(talker: Talker) -> Saw:
        talker.send(UPLOAD)
        talker.sock.sendall(b"this is no TLS record at all")
        return talker.read()

    met = between.relay(contexts, client, read)
    assert met.backend == Saw(UPLOAD, RESET)
    assert met.client is not None
    assert "ALERT" in met.client.end
    assert met.outcome.a_to_b.end is RelayEnd.TLS_ERROR
    # OpenSSL 3.0 says the first, 3.5 the other.
    assert met.outcome.a_to_b.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


@every_combination
def test_r3_an_early_answer_arrives(contexts: Contexts, between: Between) -> None:
    """The backend answers, ends and is gone, while the client still uploads."""

    def client(talker: Talker) -> Saw:
        with suppress(ConnectionError, ssl.SSLError):
            for _ in range(8):
                talker.send(UPLOAD)
        return talker.read()

    def backend(talker: Talker) -> None:
        talker.receive(1000)
        talker.send(SHORT_ANSWER)
        talker.half_close()
        wait_acknowledged(talker)

    met = between.relay(contexts, client, backend)
    assert met.client is not None
    assert met.client.data == SHORT_ANSWER, met.outcome


@pytest.mark.parametrize("make", [SocketStream, adapted_socket_stream])
async def test_r3_an_early_answer_waits_for_who_still_uploads(
    make: Callable[[socket.socket], trio.abc.Stream],
) -> None:
    """The client reads when it has sent all, which takes longer than an end may take. With an
    idle timeout that is no reason to lose the answer: it is not idle."""
    (ours, theirs), (to_backend, backends) = tcp_pair(), tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client, backend = trio_socket_stream(theirs), trio_socket_stream(backends)
    below = SocketStream(to_backend)
    answer = bytes(60_000)
    outcomes: list[RelayOutcome] = []

    async def run() -> None:
        outcomes.append(await relay(make(ours), below, idle_timeout=LIMIT))

    async with client, backend, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await client.send_all(b"a request")
        assert await backend.receive_some() == b"a request"
        await backend.send_all(answer)
        await backend.aclose()
        while not below._closing.started:
            await client.send_all(bytes(1000))
        assert statistics().connections_open == 1  # that of the client
        await client.send_all(bytes(1000))
        received = b""
        while piece := await client.receive_some():
            received += piece
    assert received == answer
    assert outcomes[0].b_to_a == RelayDirection(len(answer), RelayEnd.ORDERLY)
    assert outcomes[0].a_to_b.end is RelayEnd.UNDELIVERED


@pytest.mark.parametrize("make", [SocketStream, adapted_socket_stream])
@pytest.mark.parametrize("how", ["reset", "end"])
async def test_r3_an_early_answer_does_not_wait_for_who_is_gone(
    make: Callable[[socket.socket], trio.abc.Stream], how: str
) -> None:
    """The kernel goes on to count what was sent as not acknowledged."""
    (ours, theirs), (to_backend, backends) = tcp_pair(), tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    below = SocketStream(to_backend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(relay, make(ours), below, idle_timeout=10 * LIMIT))
        theirs.sendall(b"a request")
        assert await in_thread(backends.recv, 100) == b"a request"
        await in_thread(backends.sendall, bytes(60_000))
        backends.shutdown(socket.SHUT_WR)
        await until(lambda: not unacknowledged(backends.fileno()))
        reset(backends)
        theirs.sendall(bytes(1000))
        if how == "reset":
            reset(theirs)
        else:
            theirs.close()


# R4


class ResetWhileSending(trio.abc.HalfCloseableStream):
    """A stream as trio's over a socket that was reset: a send meets that, which the kernel reports
    once, and passes a checkpoint before it raises. A receive reads the end meanwhile."""

    def __init__(self) -> None:
        self.has_met_it = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.has_met_it.set()
        for _ in range(2):  # the receive returns after the first, in whatever order trio runs both
            await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError from ConnectionResetError(errno.ECONNRESET, "reset")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self.has_met_it.wait()
        return b""

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_r3_a_reset_that_a_send_met_is_no_end_of_the_input() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(REQUEST)
    outcome = await relay(ResetWhileSending(), ours)
    assert outcome.a_to_b.end is RelayEnd.RESET


class WithMore(ResetWhileSending):
    """It has an attribute that trio's TLS has, too."""

    @property
    def transport_stream(self) -> trio.abc.Stream:
        raise trio.ClosedResourceError


async def test_r4_what_else_a_stream_has_is_not_looked_at() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(REQUEST)
    outcome = await relay(WithMore(), ours, idle_timeout=LIMIT)
    assert outcome.a_to_b.end is RelayEnd.RESET


@every_combination
def test_r4_both_are_ended(contexts: Contexts, between: Between) -> None:
    """And the descriptors closed, when their ends have come. (What an earlier test has left may go
    meanwhile.)"""
    before = open_sockets()
    between.relay(contexts, end, end)
    assert open_sockets() <= before


def test_r4_nothing_has_happened_to_what_can_t_be_relayed(contexts: Contexts) -> None:
    async def main() -> None:
        a, b = await socket_streams()
        c, d = await handshaken(contexts)
        with pytest.raises(ValueError, match="itself"):
            await relay(a, a)
        with pytest.raises(TypeError, match="streams"):
            await relay(a, None)  # type: ignore[arg-type]
        for wrong in (-1, 10**400):
            with pytest.raises(ValueError, match="timeout"):
                await relay(a, c, idle_timeout=wrong)
        with pytest.raises(ValueError, match="below"):
            await relay(a, c.transport_stream)
        receiving = b.start_receive(100)
        with pytest.raises(trio.BusyResourceError):
            await relay(c, b)
        await d.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await relay(a, d)
        await a.send_all(b"still a's own")
        assert await receiving == b"still a's own"
        await aclose_all(a, b, c)

    trio.run(main)


def test_r4_the_streams_are_the_relay_s(contexts: Contexts) -> None:
    async def main() -> None:
        a, theirs_a = await socket_streams()
        b, theirs_b = await handshaken(contexts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, a, b)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await a.receive_some()
            with pytest.raises(trio.BusyResourceError):
                await b.send_all(b"in between")
            await theirs_a.aclose()
            await theirs_b.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await a.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await b.send_all(b"too late")

    trio.run(main)


def test_r4_closed_by_somebody_else(contexts: Contexts) -> None:
    """Then it is cut: what the other one was told must not look whole."""

    async def main() -> None:
        a, theirs_a = await socket_streams()
        b, theirs_b = await handshaken(contexts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_reset, theirs_b)
            nursery.start_soon(when_all_wait, a.socket.close)
            outcome = await relay(a, b)
        assert outcome.a_to_b.end is RelayEnd.CANCELLED
        assert outcome.b_to_a.end is RelayEnd.UNDELIVERED
        await theirs_a.aclose()

    trio.run(main)


# R5


async def expect_reset(stream: trio.abc.ReceiveStream) -> None:
    with pytest.raises(trio.BrokenResourceError) as caught:
        while await stream.receive_some():
            pass
    assert not isinstance(caught.value, TruncationError)
    await stream.aclose()


@pytest.mark.parametrize("way", ["cancelled", "idle"])
def test_r5_cut_in_the_middle(contexts: Contexts, way: str) -> None:
    ends: list[RelayOutcome] = []

    async def cut(nursery: trio.Nursery, a: trio.abc.Stream, b: trio.abc.Stream) -> None:
        with trio.CancelScope() as scope:
            if way == "cancelled":
                nursery.start_soon(when_all_wait, scope.cancel)
            ends.append(await relay(a, b, idle_timeout=0.05 if way == "idle" else None))
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught == (way == "cancelled")

    async def main() -> None:
        a, theirs_a = await socket_streams()
        b, theirs_b = await handshaken(contexts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_reset, theirs_a)
            nursery.start_soon(expect_reset, theirs_b)
            nursery.start_soon(cut, nursery, a, b)

    trio.run(main)
    (outcome,) = ends
    expected = RelayEnd.CANCELLED if way == "cancelled" else RelayEnd.TIMED_OUT
    assert outcome.a_to_b.end is outcome.b_to_a.end is expected


def trio_tls_stream(sock: socket.socket, contexts: Contexts) -> trio.abc.Stream:
    return trio.SSLStream(trio_socket_stream(sock), contexts.server, server_side=True)


@pytest.mark.parametrize(
    "stream",
    [
        lambda sock, contexts: SocketStream(sock),
        lambda sock, contexts: trio_socket_stream(sock),
        trio_tls_stream,
    ],
    ids=["ring", "trio", "trio's TLS"],
)
async def test_r5_who_takes_in_slowly_is_not_idle(
    contexts: Contexts, stream: Callable[[socket.socket, Contexts], trio.abc.Stream]
) -> None:
    """1. A target takes nothing in, until our kernel does neither. 2. It reads so little that the
    kernel wants no more of us for long: what it has not acknowledged is the last of the figures."""
    theirs_a, a = tcp_pair()
    b, theirs_b = tcp_pair()
    theirs_b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    theirs_a.setblocking(False)
    watched: list[Relay] = []
    last: tuple[int, ...] = ()

    def is_stuck() -> bool:
        nonlocal last
        with suppress(BlockingIOError):
            while True:
                theirs_a.send(bytes(POOL))
        before, last = last, watched[0].moved()
        return last == before and watched[0].sides[1].is_full() and last[-1] > 0

    def has_taken_more() -> bool:
        with suppress(BlockingIOError):
            theirs_b.recv(SMALL, socket.MSG_DONTWAIT)
        return watched[0].moved()[-1] != last[-1]

    with theirs_a, theirs_b:
        async with trio.open_nursery() as nursery:
            target = stream(b, contexts)
            nursery.start_soon(relay_watched, SocketStream(a), target, watched.append)
            if isinstance(target, trio.SSLStream):
                talker = TlsTalker(theirs_b, contexts, server_side=False)
                await trio.to_thread.run_sync(talker.handshake)
            await until(lambda: bool(watched))
            await until(is_stuck)
            await until(has_taken_more)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [SocketStream, adapted_socket_stream])
async def test_r5_what_came_before_an_end_has_time(
    contexts: Contexts, stream: Callable[[socket.socket], trio.abc.Stream]
) -> None:
    """The client has said all, and is slow to take in the answer; the server ends. The relay's own
    end would give up at once."""
    async with to_an_impatient_side(contexts, SocketStream, stream) as impatient:
        below = SocketStream(impatient.client)
        client = TlsStream(below, contexts.client, server_hostname="localhost")
        await client.do_handshake()
        await client.send_eof()
        impatient.backend.sendall(bytes(ACCEPTED))
        impatient.backend.shutdown(socket.SHUT_WR)
        await until(lambda: all(each.end for each in impatient.relays[0].directions))
        received = 0
        while data := await client.receive_some():
            received += len(data)
        assert received == ACCEPTED
        await client.aclose()
    assert impatient.outcomes[0].is_orderly


def test_r5_what_had_ended_stays_ended(contexts: Contexts) -> None:
    async def main() -> None:
        a, theirs_a = await socket_streams()
        b, theirs_b = await handshaken(contexts)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def talk() -> None:
                    await theirs_a.send_all(ANSWER)
                    await theirs_a.send_eof()
                    received = b""
                    while data := await theirs_b.receive_some():
                        received += data
                    assert received == ANSWER
                    scope.cancel()
                    await expect_reset(theirs_a)
                    assert await theirs_b.receive_some() == b""
                    await theirs_b.aclose()

                nursery.start_soon(talk)
                outcome = await relay(a, b)
        assert outcome.a_to_b.end is RelayEnd.ORDERLY
        assert outcome.b_to_a.end is RelayEnd.CANCELLED
        assert b.close_outcome is CloseOutcome.CLEAN

    trio.run(main)


def test_r5_interrupted(contexts: Contexts) -> None:
    theirs_a, a = tcp_pair()
    b, theirs_b = tcp_pair()
    with signal_in_the_ring(), pytest.raises(KeyboardInterrupt):
        blocking.relay(blocking.SocketStream(a), blocking.SocketStream(b))
    BlockingDriver.current().end()
    for sock in (theirs_a, theirs_b):
        with sock, pytest.raises(ConnectionResetError):
            sock.recv(1)


# R6


@pytest.mark.parametrize("kinds", list(product(KINDS[:2], KINDS[:2])), ids=pair_name)
def test_r6_no_task_step_for_a_piece(contexts: Contexts, kinds: tuple[Kind, Kind]) -> None:
    """The relay's task runs when it starts and when it ends."""
    steps = 0

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += task.name == f"{relay.__module__}.relay"

    def ask_often(talker: Talker) -> Saw:
        talker.handshake()
        for _ in range(100):
            talker.send(REQUEST)
            assert talker.receive(len(REQUEST)) == REQUEST
        return end(talker)

    def echo(talker: Talker) -> Saw:
        talker.handshake()
        for _ in range(100):
            talker.send(talker.receive(len(REQUEST)))
        return end(talker)

    meeting = Meeting(contexts, kinds, ask_often, echo)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, *meeting.streams())

    trio.run(main, instruments=[Steps()])
    client, backend = meeting.join()
    assert client == backend == Saw(b"", END)
    assert 0 < steps <= 4


async def test_r6_a_flood_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that always has more, and a target that takes it all in."""
    read, pieces, others_ran = Side.read, 0, False

    def read_endlessly(side: Side, max_bytes: int) -> bytes | memoryview | None:
        nonlocal pieces
        pieces += 1
        assert pieces < 1000
        return read(side, max_bytes) if others_ran else bytes(max_bytes)

    monkeypatch.setattr(Side, "read", read_endlessly)
    monkeypatch.setattr(Side, "write", lambda side, data, *, lent=False: None)
    outcomes: list[RelayOutcome] = []

    async def relay_both(a: trio.abc.Stream, b: trio.abc.Stream) -> None:
        outcomes.append(await relay(a, b))

    a, theirs_a = await socket_streams()
    b, theirs_b = await socket_streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay_both, a, b)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        others_ran = True
        await aclose_all(theirs_a, theirs_b)
    assert pieces > 3
    assert outcomes[0].is_orderly


# The table


def test_r3_the_table_of_ends() -> None:
    """The code's, the module's and the page's are one."""
    assert relay_ends.__doc__ is not None
    assert set(ANSWERS) == set(RelayEnd)
    expected = {(end.name, answer.name) for end, answer in ANSWERS.items()}
    in_module = re.findall(r"^    ([A-Z_]+)  +.*?  ([A-Z_]+) ", relay_ends.__doc__, re.MULTILINE)
    page = Path(__file__).parents[2] / "docs" / "relay.md"
    on_page = re.findall(r"^\| `([A-Z_]+)` \|.*\| `([A-Z_]+)`", page.read_text(), re.MULTILINE)
    assert set(in_module) == set(on_page) == expected
    assert len(in_module) == len(on_page) == len(expected)
