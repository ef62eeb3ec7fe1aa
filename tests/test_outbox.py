"""The outbox (csrc/outbox.c) on a real ring, without any event loop."""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from ringtls._engine.request import Request
from ringtls._engine.ring import LARGEST_COPY, REAP_EVENTS, Ring
from ringtls._engine.wakeups import wakes_event_loops

from .support.clogging import is_full
from .support.engines import io_uring_only
from .support.processes import in_child
from .support.rings import Pair, drive, drive_until, is_awake
from .support.seccomp import forbid
from .support.streams import open_fds, reset, tcp_pair, tcp_pairs
from .support.waiting import LIMIT

ROUNDS = int(100 * float(os.environ.get("RINGTLS_RACES", "1")))


class Box:
    """An outbox, and what it reported."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self.ring = ring
        self.progress: list[int] = []
        self.error: OSError | None = None
        self.is_over = False
        self.request = ring.outbox_open(
            sock.fileno(), on_progress=self.progress.append, on_done=self._end
        )

    def _end(self, request: Request) -> None:
        self.is_over = True
        self.error = request.error()

    def put(self, data: bytes | memoryview) -> int:
        return self.ring.outbox_write(self.request, data)

    def finish(self, seconds: float) -> bool:
        return self.ring.outbox_shutdown(self.request, time.monotonic() + seconds)

    def unsent(self, below: int = 0) -> int:
        return self.ring.outbox_notify_below(self.request, below)

    def errno(self) -> int | None:
        """How it ended."""
        drive_until(self.ring, lambda: self.is_over)
        return None if self.error is None else self.error.errno


@pytest.fixture
def narrow() -> Iterator[Pair]:
    """A connection that takes little; the peer does not block."""
    ours, theirs = tcp_pair(32768)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def read(sock: socket.socket) -> bytes:
    """What has come."""
    data = bytearray()
    with suppress(BlockingIOError):
        while piece := sock.recv(1 << 20):
            data += piece
    return bytes(data)


def read_until(ring: Ring, box: Box, sock: socket.socket) -> bytes:
    """Read until the outbox is over, and what has come by then."""
    data = bytearray()

    def is_over() -> bool:
        data.extend(read(sock))
        return box.is_over

    drive_until(ring, is_over)
    return bytes(data + read(sock))


def clog(ring: Ring, box: Box) -> bytes:
    """Put in more than a narrow connection takes, and have its send in flight."""
    pieces = [os.urandom(size) for size in (300_000, 2 * LARGEST_COPY)]
    for piece in pieces:
        box.put(piece)
        drive(ring)
    return b"".join(pieces)


def assert_all_released(ring: Ring) -> None:
    drive_until(ring, lambda: not ring._borrowed)
    assert ring.counters().idle == ring.counters().in_flight == ring.in_flight


def test_pieces_of_all_sizes_arrive_in_order(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    rng = random.Random(1)
    box = Box(ring, ours)
    sent, received = bytearray(), bytearray()
    sizes = [0, 1, 511, 512, 513, LARGEST_COPY, LARGEST_COPY + 1, 100_000]
    for _ in range(1000):
        piece = rng.randbytes(rng.choice(sizes))
        sent += piece
        assert box.put(piece) >= len(piece) or len(piece) > LARGEST_COPY
        if rng.random() < 0.5:
            drive(ring)
            received += read(theirs)
    assert not box.finish(10)
    received += read_until(ring, box, theirs)
    assert received == sent
    assert ring.counters().bytes_sent == len(sent)
    assert_all_released(ring)


def test_what_is_large_is_sent_at_once(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    box = Box(ring, ours)
    data = os.urandom(LARGEST_COPY + 1)
    assert box.put(data) == 0
    assert not ring._borrowed
    assert theirs.recv(2 * len(data), socket.MSG_DONTWAIT) == data
    assert ring.counters().submitted == 0


def test_what_the_socket_does_not_take_at_once_is_borrowed(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    data = os.urandom(10_000_000)
    assert 0 < box.put(data) < len(data)
    assert list(ring._borrowed.values()) == [data]
    assert not box.finish(10)
    assert read_until(ring, box, theirs) == data
    assert_all_released(ring)


def test_small_pieces_join_behind_a_send_in_flight(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    data = clog(ring, box)
    small = os.urandom(10_000)
    for i in range(len(small)):
        box.put(small[i : i + 1])
    before = ring.counters().submitted
    assert not box.finish(10)
    assert read_until(ring, box, theirs) == data + small
    assert box.error is None
    assert ring.counters().submitted - before < 500


def test_a_borrowed_segment_is_kept_until_it_is_over(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    segment = os.urandom(10_000_000)
    box.put(segment)
    box.put(b"a copy")
    for _ in range(3):
        drive(ring)
        assert list(ring._borrowed.values()) == [segment]
    assert not box.finish(10)
    assert read_until(ring, box, theirs) == segment + b"a copy"
    assert_all_released(ring)


def test_many_borrowed_segments_are_over_at_once(ring: Ring, narrow: Pair) -> None:
    """More than the events of one reap: the ring comes back for the rest."""
    box = Box(ring, narrow[0])
    clog(ring, box)
    for _ in range(3 * REAP_EVENTS):
        box.put(bytes(LARGEST_COPY + 1))
    ring.cancel(box.request)
    assert box.errno() == errno.ECANCELED
    while ring._borrowed:
        ring.arm()
        assert is_awake(ring)
        ring.clear()
        ring.reap()


# Progress


def test_progress_is_reported_once_when_asked_for(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    clog(ring, box)
    assert box.unsent(1000) == box.unsent(150_000) > 150_000
    drive_until(ring, lambda: (read(theirs), box.progress)[1])
    (unsent,) = box.progress
    assert unsent < 150_000
    drive_until(ring, lambda: (read(theirs), not box.unsent())[1])
    assert len(box.progress) == 1
    assert box.unsent(1) == 0
    drive(ring)
    assert len(box.progress) == 1


def test_progress_that_raises_does_not_keep_others_from_theirs(ring: Ring, pair: Pair) -> None:
    def fail(unsent: int) -> None:
        raise KeyError("made up")

    failing = Box(ring, pair[0])
    failing.request.on_progress = fail
    box = Box(ring, pair[0])
    for each in (failing, box):
        each.put(b"x")
        each.unsent(1)
    with pytest.raises(KeyError, match="made up"):
        drive_until(ring, lambda: box.progress)
    assert box.progress == [0]


def test_an_outbox_that_a_callback_ends_reports_no_more(ring: Ring, pair: Pair) -> None:
    """1. Two outboxes say in one reap that all is sent. 2. The callback of the first ends the
    second. 3. What the second had to say is for nobody."""
    boxes = [Box(ring, pair[0]) for _ in range(2)]
    told: list[Box] = []

    def end_the_others(box: Box) -> None:
        told.append(box)
        for other in boxes:
            assert other is box or other.finish(10)

    for box in boxes:
        box.request.on_progress = lambda unsent, box=box: end_the_others(box)
        box.put(b"x")
        box.unsent(1)
    drive_until(ring, lambda: told)
    drive(ring)
    assert len(told) == 1


# Finishing


def test_finish_when_all_is_sent(ring: Ring, pair: Pair) -> None:
    box = Box(ring, pair[0])
    box.put(b"abc")
    drive_until(ring, lambda: not box.unsent())
    assert box.finish(10)
    assert not ring.in_flight
    assert pair[1].recv(10) == b"abc"


@pytest.mark.parametrize("seconds", [-1, 10])
def test_finish_sends_at_once_what_the_socket_takes(ring: Ring, pair: Pair, seconds: float) -> None:
    """Past the deadline too: there is one try."""
    box = Box(ring, pair[0])
    data = os.urandom(LARGEST_COPY + 1)
    box.put(b"abc")
    box.put(data)
    assert box.finish(seconds)
    pair[0].shutdown(socket.SHUT_WR)
    assert pair[1].recv(10_000, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"abc" + data
    assert not ring.in_flight
    assert not is_awake(ring)
    ring.submit()
    ring.arm()
    assert is_awake(ring)  # to hear that the segment is over
    ring.reap()
    assert not ring._borrowed


def test_the_last_bytes_and_the_fin_are_one_segment(ring: Ring, pair: Pair) -> None:
    box = Box(ring, pair[0])
    box.put(b"abc")
    before = segments_received(pair[1])
    assert box.finish(10)
    pair[0].shutdown(socket.SHUT_WR)
    assert [pair[1].recv(10), pair[1].recv(10)] == [b"abc", b""]
    assert segments_received(pair[1]) == before + 1


def segments_received(sock: socket.socket) -> int:
    """tcpi_segs_in of struct tcp_info (linux/tcp.h)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[140:144], sys.byteorder)


def test_finish_past_the_deadline_with_nothing_in_flight(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    data = os.urandom(10_000_000)
    box.put(data)
    with pytest.raises(TimeoutError, match="outbox on fd"):
        box.finish(-1)
    assert not ring.in_flight
    received = read(theirs)
    assert received
    assert data.startswith(received)
    ring.reap()
    assert not ring._borrowed


@pytest.mark.parametrize("seconds", [-1, 0.05])
def test_the_deadline_holds_for_a_send_in_flight(ring: Ring, narrow: Pair, seconds: float) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    data = clog(ring, box)
    ring.submit()
    assert not box.finish(seconds)
    assert box.errno() == errno.ETIMEDOUT
    assert data.startswith(read(theirs))
    assert_all_released(ring)


def test_finish_without_a_deadline(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    data = clog(ring, box)
    assert not ring.outbox_shutdown(box.request, None)
    for _ in range(3):
        drive(ring)
        assert not box.is_over
    assert read_until(ring, box, theirs) == data
    assert box.error is None


def test_the_end_of_an_outbox_wakes_who_sleeps(narrow: Pair) -> None:
    """Though nothing is left to send, and nobody asked for progress. Steps: (1) the send in flight
    waits for the peer; (2) the outbox is shut down; (3) the peer reads all; (4) the last piece is
    sent at once, and the loop falls asleep."""
    ours, theirs = narrow
    ring = Ring(buffers=4, buffer_size=4096, cooperative=not wakes_event_loops())
    box = Box(ring, ours)
    for _ in range(300):
        box.put(bytes(LARGEST_COPY))
    drive(ring)
    assert not ring.outbox_shutdown(box.request, None)
    deadline = time.monotonic() + 20
    while not box.is_over:
        ring.submit()
        ring.arm()
        while not is_awake(ring):
            assert time.monotonic() < deadline
            read(theirs)
        ring.clear()
        ring.reap()
    assert box.error is None
    assert ring.close(timeout=5.0)


def test_finish_while_the_peer_reads(ring: Ring) -> None:
    """The cancellation of the send in flight meets it at any stage: nothing is lost or doubled.

    Steps: (1) a send is in flight; (2) finish() has it cancelled, to give it the deadline; (3) the
    peer makes room, before or after the kernel hears of that; (4) the send is made anew.
    """
    for round_ in range(ROUNDS):
        ours, theirs = tcp_pair(32768)
        theirs.setblocking(False)
        with ours, theirs:
            box = Box(ring, ours)
            data = clog(ring, box)
            received = bytearray()
            for _ in range(round_ % 4):
                with suppress(BlockingIOError):
                    received += theirs.recv(30_000)
            assert not box.finish(10)
            if round_ % 3 == 0:
                ring.submit()
            received += read_until(ring, box, theirs)
            assert box.error is None
            assert received == data
    assert_all_released(ring)


def test_finish_with_a_send_that_sent_nothing_yet(ring: Ring, narrow: Pair) -> None:
    """Its cancellation is not the end of the outbox."""
    ours, theirs = narrow
    before = Box(ring, ours)
    clog(ring, before)
    drive_until(ring, lambda: is_full(ours))
    ring.cancel(before.request)
    assert before.errno() == errno.ECANCELED
    with suppress(BlockingIOError):  # poll(2) calls a socket full that takes a little more
        while True:
            ours.send(bytes(4096), socket.MSG_DONTWAIT)
    box = Box(ring, ours)
    box.put(b"last words")
    drive(ring)
    assert not box.finish(10)
    drive(ring)
    assert read_until(ring, box, theirs).endswith(b"last words")
    assert box.error is None


@io_uring_only
@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_finish_in_a_passing_shortage(error: int) -> None:
    """What the direct send(2) could not do is left to the ring."""

    def finish() -> None:
        forbid("sendto", error)
        ours, theirs = tcp_pair()
        ring = Ring(buffers=4, buffer_size=4096)
        box = Box(ring, ours)
        box.put(b"abc")
        assert not box.finish(10)
        assert box.errno() is None
        assert theirs.recv(10) == b"abc"

    in_child(finish)


# Breaking


@pytest.mark.parametrize("size", [1, LARGEST_COPY + 1])
def test_an_error_keeps_no_export_of_a_view(ring: Ring, pair: Pair, size: int) -> None:
    """Some Pythons crash when they collect such a view (rule 8 of ring.py)."""
    ours, theirs = pair
    reset(theirs)
    box = Box(ring, ours)

    def fail() -> None:
        view = memoryview(bytearray(size))  # first, so that it is cleared first
        try:
            while True:
                box.put(view)
                drive(ring)
        except OSError as error:
            cycle: list[object] = [error]  # whose traceback has this frame
            cycle.append(cycle)

    gc.disable()
    try:
        fail()
        in_child(lambda: None)  # which collects garbage first
    finally:
        gc.enable()


def test_nothing_is_taken_after_the_end(ring: Ring, narrow: Pair) -> None:
    finishing, cancelled = Box(ring, narrow[0]), Box(ring, narrow[0])
    clog(ring, finishing)
    clog(ring, cancelled)
    assert not finishing.finish(10)
    ring.cancel(cancelled.request)
    for box in (finishing, cancelled):
        for data in (b"x", bytes(LARGEST_COPY + 1)):
            borrowed = len(ring._borrowed)
            with pytest.raises(BrokenPipeError, match="outbox on fd"):
                box.put(data)
            assert len(ring._borrowed) == borrowed
    ring.cancel(finishing.request)
    assert finishing.errno() == cancelled.errno() == errno.ECANCELED


@pytest.mark.parametrize("stage", ["idle", "queued", "in flight"])
def test_cancelling(ring: Ring, narrow: Pair, stage: str) -> None:
    box = Box(ring, narrow[0])
    if stage == "queued":
        box.put(bytes(LARGEST_COPY + 1))
        box.put(b"x")
    elif stage == "in flight":
        clog(ring, box)
    ring.cancel(box.request)
    assert box.errno() == errno.ECANCELED
    assert_all_released(ring)


@pytest.mark.parametrize("finishing", [False, True])
def test_the_peer_resets(ring: Ring, narrow: Pair, finishing: bool) -> None:
    ours, theirs = narrow
    box = Box(ring, ours)
    clog(ring, box)
    if finishing:
        assert not box.finish(10)
        drive(ring)
    reset(theirs)
    assert box.errno() in (errno.ECONNRESET, errno.EPIPE)
    assert_all_released(ring)


def test_finish_after_the_peer_reset(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    reset(theirs)
    box = Box(ring, ours)
    box.put(b"x")
    with pytest.raises((ConnectionResetError, BrokenPipeError), match="outbox on fd"):
        box.finish(10)
    assert_all_released(ring)


def test_what_is_large_meets_a_reset_at_once(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    reset(theirs)
    box = Box(ring, ours)
    with pytest.raises(ConnectionResetError, match="outbox on fd"):
        box.put(bytes(LARGEST_COPY + 1))
    assert not ring._borrowed
    assert box.finish(10)  # it was not over


# The end of the socket and of the ring


def test_a_close_waits_for_a_send(ring: Ring, narrow: Pair) -> None:
    ours, theirs = narrow
    sending = ring.send(ours.fileno(), bytes(10_000_000))
    closing = ring.close_fd(ours.fileno(), discard_limit=0, deadline=time.monotonic())
    for _ in range(3):
        drive(ring)
    fds = open_fds()
    ours.detach()
    assert ring.release(closing)
    for _ in range(3):
        drive(ring)
        assert not closing.is_over
    assert open_fds() == fds
    drive_until(ring, lambda: (read(theirs), closing.is_over)[1])
    assert sending.result == 10_000_000
    assert open_fds() == fds - 1


def test_a_release_ends_an_outbox_that_its_owner_has_lost(ring: Ring, narrow: Pair) -> None:
    """Else the close would wait for it for ever."""
    ours, _ = narrow
    box = Box(ring, ours)
    clog(ring, box)
    closing = ring.close_fd(ours.fileno(), discard_limit=0, deadline=time.monotonic())
    ours.detach()
    assert ring.release(closing)
    assert box.errno() == errno.ECANCELED
    drive_until(ring, lambda: closing.is_over)


def test_closing_the_ring_cancels_and_releases(narrow: Pair) -> None:
    ring = Ring(buffers=4, buffer_size=4096)
    idle, clogged = Box(ring, narrow[0]), Box(ring, narrow[0])
    clog(ring, clogged)
    assert ring.close(timeout=5.0)
    assert idle.is_over
    assert clogged.is_over
    assert not ring._borrowed


def test_a_ring_that_fails_keeps_what_it_borrowed(narrow: Pair) -> None:
    ours, theirs = narrow
    ring = Ring(buffers=4, buffer_size=4096)
    idle, clogged = Box(ring, ours), Box(ring, ours)
    data = clog(ring, clogged)
    borrowed = dict(ring._borrowed)
    assert borrowed
    ring.fail(ValueError("made up"))
    for box in (idle, clogged):
        assert box.is_over
        with pytest.raises(OSError, match="made up"):
            box.put(b"x")
    assert not ring.close(timeout=1.0)
    assert ring._borrowed == borrowed
    assert data.startswith(read(theirs))


@dataclass
class Batch:
    """An outbox whose peer has reset it, and what another callback of the same reap did first."""

    box: Box
    act: Callable[[Box], object]
    has_acted: bool = False

    def __call__(self, request: Request) -> None:
        if not self.has_acted:
            self.has_acted = True
            assert not self.box.is_over
            self.act(self.box)


def refused(box: Box) -> None:
    with pytest.raises(FileNotFoundError):
        box.put(b"too late")


@pytest.mark.parametrize(
    "act",
    [refused, lambda box: box.unsent(1), lambda box: box.finish(10)],
    ids=["write", "unsent", "finish"],
)
def test_what_is_asked_of_an_outbox_whose_end_is_about_to_be_told(
    ring: Ring, narrow: Pair, act: Callable[[Box], object]
) -> None:
    """The engine knows it no more. What broke it is told once, and the ring goes on."""
    ours, theirs = narrow
    box = Box(ring, ours)
    clog(ring, box)
    drive_until(ring, lambda: is_full(ours))
    batch = Batch(box, act)
    with tcp_pairs(2) as others:
        for other, _ in others:
            ring.recv(other.fileno(), 1).on_done = batch
        ring.submit()
        (_, before), (_, after) = others
        before.send(b"x")
        reset(theirs)
        after.send(b"x")  # Linux 6.1 tells the last first
        for sock in (ours, *(other for other, _ in others)):
            assert select.select([sock], [], [], LIMIT)[0]
        assert box.errno() == errno.ECONNRESET
    assert batch.has_acted
    assert_all_released(ring)
