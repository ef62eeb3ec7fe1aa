"""Requests for input, directly on a ring, and the back pressure of a TLS stream that has one."""

from __future__ import annotations

import errno
import os
import platform
import random
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked
from trio.to_thread import run_sync as in_thread

from ringtls import TlsStream
from ringtls._engine.choice import Engine
from ringtls._engine.request import Request
from ringtls._engine.ring import BUFFER_SIZE, BUFFERS, Ring
from ringtls._outcome import CloseOutcome
from ringtls._streams.tls import PIECE
from ringtls._transports.base import HIGH_WATER, INPUT_LIMIT

from .conftest import Contexts
from .support.engines import io_uring_only
from .support.peer import Transport, meet
from .support.rings import Pair, drive, drive_until, is_awake, small_queues
from .support.streams import reset, tcp_pair, tcp_pairs
from .support.waiting import until

POOL = 4 * 4096  # of the ring fixture

ROUNDS = int(100 * float(os.environ.get("RINGTLS_RACES", "1")))


class Input:
    """A request for input, and what it passed on."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self.ring = ring
        self.data = bytearray()
        self.error: OSError | None = None
        self.is_over = False
        self.request = ring.recv_multishot(sock.fileno(), sink=self._take, on_done=self._end)

    def _take(self, view: bytes | bytearray | memoryview) -> None:
        self.data += view

    def _end(self, request: Request) -> None:
        self.is_over = True
        self.error = request.error()

    def errno(self) -> int | None:
        """How it ended."""
        drive_until(self.ring, lambda: self.is_over)
        return None if self.error is None else self.error.errno


def test_all_comes_in_order_and_then_the_end(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    theirs.setblocking(False)
    left = memoryview(sent := os.urandom(1_000_000))
    input_ = Input(ring, ours)
    while left:
        with suppress(BlockingIOError):
            left = left[theirs.send(left[:70_000]) :]
        drive(ring)
    theirs.shutdown(socket.SHUT_WR)
    assert input_.errno() is None
    assert input_.data == sent
    assert ring.counters().bytes_received == len(sent)
    assert ring.counters().retries > 0 or ring.engine is Engine.EPOLL  # the pool ran dry


def test_what_came_before_a_reset_is_passed_on(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    input_ = Input(ring, ours)
    ring.submit()
    theirs.sendall(b"last words")
    reset(theirs)
    assert input_.errno() == errno.ECONNRESET
    assert input_.data == b"last words"


def test_more_inputs_than_buffers(ring: Ring) -> None:
    with tcp_pairs(16) as pairs:
        inputs = [Input(ring, ours) for ours, _ in pairs]
        ring.submit()
        for _, theirs in pairs:
            theirs.sendall(b"data")
            theirs.shutdown(socket.SHUT_WR)
        assert [(i.errno(), bytes(i.data)) for i in inputs] == [(None, b"data")] * 16
        assert ring.counters().retries > 0 or ring.engine is Engine.EPOLL


def test_c20_an_input_that_waits_holds_no_buffer(ring: Ring) -> None:
    """Each gets one of those that are there, though many wait before it."""
    with tcp_pairs(16) as pairs:
        inputs = [Input(ring, ours) for ours, _ in pairs]
        for input_, (_, theirs) in zip(reversed(inputs), reversed(pairs), strict=True):
            drive(ring)
            theirs.sendall(b"data")
            drive_until(ring, lambda input_=input_: input_.data == b"data")  # type: ignore[misc]
        assert ring.counters().buffers_lent <= 1  # what was passed on last


def test_input_that_nobody_awaits_keeps_nobody_awake(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    outbox = ring.outbox_open(ours.fileno(), on_progress=bool, on_done=lambda request: None)
    input_ = Input(ring, ours)
    ring.submit()
    ring.cancel(input_.request)
    assert input_.errno() == errno.ECANCELED
    theirs.sendall(b"not now")
    drive(ring)
    ring.submit()
    ring.arm()
    assert not is_awake(ring)
    input_ = Input(ring, ours)
    drive_until(ring, lambda: input_.data == b"not now")
    ring.cancel(outbox)


def test_a_dry_pool_is_not_asked_in_vain(ring: Ring) -> None:
    with tcp_pairs(64) as pairs:
        for _, theirs in pairs:
            theirs.sendall(b"data")
        inputs = [Input(ring, ours) for ours, _ in pairs]
        drive_until(ring, lambda: all(i.data == b"data" for i in inputs))
        assert 0 < ring.counters().retries < 2 * len(pairs)  # Linux 6.1 asks some twice
        for input_ in inputs:
            ring.cancel(input_.request)
            assert input_.errno() == errno.ECANCELED


def test_an_input_that_found_the_pool_dry_can_be_cancelled(ring: Ring) -> None:
    with tcp_pairs(16) as pairs:
        for _, theirs in pairs:
            theirs.sendall(b"data")
        inputs = [Input(ring, ours) for ours, _ in pairs]
        drive(ring)
        late = [i for i in inputs if not i.data]
        assert late
        for input_ in inputs:
            ring.cancel(input_.request)
        assert [i.errno() for i in inputs] == [errno.ECANCELED] * 16
        assert not any(i.data for i in late)


def test_a_peer_that_sends_without_end_keeps_nobody_waiting() -> None:
    ring = Ring(buffers=BUFFERS, buffer_size=64)
    with tcp_pairs(2) as [(flooded, flooding), (ours, theirs)]:
        flood, other = Input(ring, flooded), Input(ring, ours)
        drive(ring)
        flooding.sendall(bytes(100_000))
        drive_until(ring, lambda: flood.data)
        theirs.sendall(b"data")
        drive_until(ring, lambda: other.data)
        if not platform.release().startswith("6.1."):  # which takes all that the pool has
            assert len(flood.data) < 100_000
        for input_ in flood, other:
            ring.cancel(input_.request)
            assert input_.errno() == errno.ECANCELED
    assert ring.close(timeout=5.0)


@io_uring_only
def test_more_input_than_the_completion_queue_holds(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ends a receive whose completions overflow: it goes on by itself."""
    small_queues(monkeypatch, 8)
    ring = Ring(buffers=64, buffer_size=256)
    ours, theirs = pair
    input_ = Input(ring, ours)
    ring.submit()
    sent = os.urandom(40_000)
    theirs.sendall(sent)
    theirs.shutdown(socket.SHUT_WR)
    assert input_.errno() is None
    assert input_.data == sent
    assert ring.close(timeout=5.0)


@pytest.mark.parametrize("then", ["cancel", "close"])
def test_cancelling_loses_nothing(ring: Ring, then: str) -> None:
    """What was not passed on is still in the socket, or was discarded by the close."""
    for round_ in range(ROUNDS):
        ours, theirs = tcp_pair()
        with ours, theirs:
            sent = os.urandom(20_000)
            input_ = Input(ring, ours)
            if round_ % 2:
                ring.submit()
            theirs.sendall(sent)
            for _ in range(round_ // 2 % 3):
                drive(ring)
            if then == "cancel":
                ring.cancel(input_.request)
            else:
                closing = ring.close_fd(
                    ours.fileno(), discard_limit=0, deadline=time.monotonic() + 10
                )
                ours.detach()
                assert ring.release(closing)
            assert input_.errno() == errno.ECANCELED
            theirs.shutdown(socket.SHUT_WR)
            if then == "cancel":
                left = b"".join(iter(partial(ours.recv, 65536), b""))
                assert input_.data + left == sent
            else:
                drive_until(ring, lambda closing=closing: closing.is_over)  # type: ignore[misc]
                assert sent.startswith(input_.data)


def test_a_sink_that_fails_gets_no_more(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    pieces: list[int] = []

    def sink(view: bytes | bytearray | memoryview) -> None:
        pieces.append(len(view))
        raise MemoryError("made up")

    over: list[Request] = []
    request = ring.recv_multishot(ours.fileno(), sink=sink, on_done=over.append)
    ring.submit()
    theirs.sendall(bytes(3 * 4096))  # three buffers in one reap
    drive_until(ring, lambda: over)
    assert pieces == [4096]
    assert isinstance(request.failure, MemoryError)
    theirs.sendall(b"x")
    assert ours.recv(3 * 4096)


def test_one_reap_ends_however_fast_the_peer_is(ring: Ring, pair: Pair) -> None:
    """Else what its callbacks ask for would never get to the kernel."""
    ours, theirs = pair
    refills = iter(range(100))
    passed_on = 0

    def refill(view: bytes | bytearray | memoryview) -> None:
        nonlocal passed_on
        passed_on += len(view)
        ring.cancel(request)
        if next(refills, None) is not None:
            theirs.sendall(bytes(4096))

    request = ring.recv_multishot(ours.fileno(), sink=refill, on_done=lambda request: None)
    ring.submit()
    theirs.sendall(bytes(4096))
    ring.wait(1.0)
    ring.clear()
    ring.reap()
    assert 0 < passed_on <= POOL
    ring.arm()
    assert is_awake(ring)
    drive_until(ring, lambda: request.is_over)
    assert passed_on <= 2 * POOL


# Of a TLS stream


def held(stream: TlsStream) -> int:
    """Bytes of input that the stream holds and nobody has asked for."""
    return int(stream._session.unread_input)


def is_paused(stream: TlsStream) -> bool:
    return stream._transport._input is None  # type: ignore[attr-defined]


async def test_a_peer_that_floods_is_held_back(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    sent = os.urandom(20_000_000)

    def flood() -> None:
        peer.send(sent)
        peer.send_close_notify()

    received = bytearray()
    pauses = 0
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, flood)
        while piece := await stream.receive_some():
            received += piece
            if len(received) < 15_000_000:
                await until(lambda: is_paused(stream))
                pauses += 1
                assert held(stream) <= INPUT_LIMIT + BUFFERS * BUFFER_SIZE
    assert received == sent
    assert pauses > 2
    peer.sock.close()


async def test_what_is_only_looked_for_is_held_back(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)

    def flood() -> None:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            peer.send(bytes(20_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, flood)
        await until(lambda: stream.input_pending and held(stream) >= INPUT_LIMIT)
        for _ in range(100):
            assert stream.input_pending
            await trio.lowlevel.checkpoint()
        assert held(stream) <= INPUT_LIMIT + BUFFERS * BUFFER_SIZE
        stream.close_unclean()
    peer.sock.close()


async def test_receives_cut_off_while_input_pauses_and_resumes(contexts: Contexts) -> None:
    """Nobody sleeps for ever, whatever the order of pause, data, cancellation and receive."""
    stream, peer = await meet(contexts)
    sent = os.urandom(5_000_000)
    rng = random.Random(1)

    def flood() -> None:
        for start in range(0, len(sent), 50_000):
            peer.send(sent[start : start + 50_000])

    received = bytearray()
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, flood)
        with trio.fail_after(60):
            while len(received) < len(sent):
                with trio.move_on_after(rng.choice([0, 0, 0.0002, 0.002])):
                    received += await stream.receive_some(rng.choice([100, 20_000, 1_000_000]))
                if rng.random() < 0.01:
                    await trio.sleep(rng.random() * 0.01)
    assert received == sent
    peer.sock.close()


async def test_what_came_before_a_reset_is_received(contexts: Contexts) -> None:
    """Both come in one reap, while a task waits."""
    stream, peer = await meet(contexts)
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive() -> None:
        assert await stream.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await stream.receive_some()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        peer.send(b"last words")
        reset(peer.sock)


async def test_a_piece_that_was_not_accepted_spoils_the_end(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No close_notify was sent: though the outbox ended well, the connection did not."""
    stream, peer = await meet(contexts, buffer_size=32768)
    await stream.send_all(bytes(127_000))

    def put(ring: Ring, outbox: Request, data: bytes) -> int:
        raise OSError(errno.ENOMEM, "made up")

    monkeypatch.setattr(Ring, "outbox_write", put)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        end = await in_thread(peer.end)
    assert not end.close_notify
    assert end.transport is Transport.RST
    assert stream.close_outcome is CloseOutcome.PEER_RESET


async def test_memory_stays_bounded(contexts: Contexts) -> None:
    """Peers that send without end where nobody reads, and peers that never read."""
    count = 16
    flooding = [await meet(contexts) for _ in range(count)]
    silent = [await meet(contexts, buffer_size=32768) for _ in range(count)]
    nothing = bytes(65536)
    before = resident_bytes()

    async def fill(stream: TlsStream) -> None:
        while True:
            await stream.send_all(nothing)

    async def flood(rounds: int) -> None:
        for _ in range(rounds):
            for _, peer in flooding:
                with suppress(BlockingIOError):
                    peer.sock.send(nothing)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for stream, _ in silent:
            nursery.start_soon(fill, stream)
        for _, peer in flooding:
            peer.sock.setblocking(False)
        await flood(300)
        assert all(is_paused(stream) for stream, _ in flooding)
        assert sum(held(s) for s, _ in flooding) <= count * INPUT_LIMIT + BUFFERS * BUFFER_SIZE
        full = resident_bytes()
        await flood(300)
        nursery.cancel_scope.cancel()
    assert full - before < 2 * count * (INPUT_LIMIT + HIGH_WATER + PIECE) + BUFFERS * BUFFER_SIZE
    assert resident_bytes() - full < 2**23  # of 300 MB more that were offered
    for stream, peer in flooding + silent:
        stream.close_unclean()
        peer.sock.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
