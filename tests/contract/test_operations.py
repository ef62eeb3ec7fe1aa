"""H1, H2, H3, H4, H5, H6, H7, H8: operations on a real ring, without any event loop."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ringtls._engine import extension
from ringtls._engine import ring as _ring
from ringtls._engine.choice import Engine
from ringtls._engine.descriptors import close_now, unacknowledged
from ringtls._engine.handle import Handle
from ringtls._engine.request import (
    TRANSITIONS,
    Event,
    Opcode,
    Request,
    State,
)
from ringtls._engine.ring import Ring
from ringtls._engine.wakeups import wakes_event_loops
from ringtls._transports.owned_socket import OwnedSocket

from ..support.engines import io_uring_only
from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.processes import in_child
from ..support.rings import Pair, drive, drive_until, is_awake, small_queues
from ..support.seccomp import forbid
from ..support.streams import open_fds, tcp_pair, tcp_pairs
from ..support.waiting import LIMIT, wait_until


def finish(ring: Ring, *operations: Handle) -> None:
    """Drive the ring until the operations are over."""
    drive_until(ring, lambda: all(operation.done for operation in operations))


def finish_all(ring: Ring) -> None:
    drive_until(ring, lambda: not ring.in_flight)


def test_h1_states(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    request = ring.recv(ours.fileno(), 100)
    operation = Handle(ring, request)
    assert repr(operation) == f"<Handle: <recv on fd {ours.fileno()}, SUBMITTED>>"
    operation.cancel()
    assert "CANCELLING" in repr(operation)
    finish(ring, operation)
    assert repr(request) == f"<recv on fd {ours.fileno()}, DONE, result {-errno.ECANCELED}>"
    with pytest.raises(OSError, match="recv on fd"):
        operation.take()
    assert "TAKEN" in repr(operation)


def test_h1_the_table_has_a_row_for_each_state() -> None:
    assert set(TRANSITIONS) == set(State)
    request = Request(Opcode.RECV, 0)
    with pytest.raises(RuntimeError, match="can't take"):
        request.advance(Event.TAKE)


def test_h1_user_data_is_never_reused(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    ids = set()
    for _ in range(1000):
        operation = Handle(ring, ring.send(ours.fileno(), b"x"))
        ids.add(operation._request.id)
        finish(ring, operation)
        operation.take()
    assert len(ids) == 1000


def test_h2_a_buffer_outlives_everybody(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair

    class Buffer(bytearray):
        pass

    buffer = Buffer(100)
    alive = weakref.ref(buffer)
    operation = Handle(ring, ring.recv_into(ours.fileno(), buffer))
    ring.submit()
    with pytest.raises(BufferError):
        buffer.append(1)
    del operation, buffer
    gc.collect()
    assert alive() is not None
    finish_all(ring)
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("method", ["send", "recv_into"])
def test_h2_memory_that_is_in_a_cycle(ring: Ring, method: str) -> None:
    """Collecting it once crashed the interpreter."""

    def fail() -> None:
        try:
            getattr(ring, method)(-1, memoryview(bytearray(8)))
        except OSError as error:
            error.itself = error  # type: ignore[attr-defined]

    fail()
    gc.collect()


def test_h2_a_ring_that_nobody_holds(pair: Pair) -> None:
    ours, theirs = pair
    ring = Ring(buffers=4, buffer_size=4096)
    alive = weakref.ref(ring)
    ring.recv(ours.fileno(), 100)
    ring.submit()
    del ring
    gc.collect()
    forgotten = alive()
    assert forgotten is not None
    assert forgotten.close(timeout=5.0)


def test_h3_dropping_a_read_cancels_it(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    operation = Handle(ring, ring.recv(ours.fileno(), 100))
    ring.submit()
    del operation
    finish_all(ring)
    theirs.sendall(b"x")
    assert ours.recv(10) == b"x"  # the dropped receive did not take it


def test_h3_dropping_a_write_lets_it_finish(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    data = bytearray(os.urandom(5_000_000))
    sent = bytes(data)
    operation = Handle(ring, ring.send(ours.fileno(), data))
    ring.submit()
    del operation, data
    gc.collect()
    received = bytearray()
    theirs.settimeout(LIMIT)
    while len(received) < len(sent):
        drive(ring)
        received += theirs.recv(1 << 20)
    finish_all(ring)
    assert received == sent


def test_h3_an_accepted_fd_that_nobody_takes_is_closed(ring: Ring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = open_fds()
        operation = Handle(ring, ring.accept(listener.fileno(), OwnedSocket.to_come()))
        with socket.create_connection(listener.getsockname()):
            finish(ring, operation)
            assert open_fds() == before + 2
            del operation
            ring.submit()
            assert open_fds() == before + 1


def test_h4_a_result_wins_over_a_late_cancellation(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    operation = Handle(ring, ring.recv(ours.fileno(), 100))
    theirs.sendall(b"in time")
    ring.wait(LIMIT)  # it is complete, and not yet reaped
    operation.cancel()
    finish(ring, operation)
    assert operation.take() == b"in time"


def test_h4_a_cancellation_before_the_result_is_known_loses_nothing(ring: Ring, pair: Pair) -> None:
    """The data is there, and the kernel's work for it deferred: either may come first."""
    ours, theirs = pair
    operation = Handle(ring, ring.recv(ours.fileno(), 100))
    ring.submit()
    theirs.sendall(b"in time")
    select.select([ours], [], [], LIMIT)
    operation.cancel()
    finish(ring, operation)
    received = b""
    with suppress(OSError):  # ECANCELED
        data = operation.take()
        received += data if isinstance(data, bytes) else b""  # at the end of input it is 0
    ours.setblocking(False)
    with suppress(BlockingIOError):
        received += ours.recv(100)
    assert received == b"in time"


def send_that_blocks(ring: Ring, ours: socket.socket, theirs: socket.socket) -> Handle:
    """Of five million bytes, of which some have come, over a connection that takes few."""
    operation = Handle(ring, ring.send(ours.fileno(), bytes(5_000_000)))
    ring.submit()
    select.select([theirs], [], [], LIMIT)
    ring.reap()
    assert not operation.done
    return operation


def test_h4_a_cancelled_send_says_how_much_went_out(ring: Ring) -> None:
    ours, theirs = tcp_pair(32768)
    with ours, theirs:
        operation = send_that_blocks(ring, ours, theirs)
        operation.cancel()
        finish(ring, operation)
        sent = operation.take()
        assert isinstance(sent, int)
        assert 0 < sent < 5_000_000
        ours.shutdown(socket.SHUT_WR)
        received = 0
        while data := theirs.recv(1 << 20):
            received += len(data)
        assert received == sent


def test_h4_a_send_that_a_fin_of_ours_ends_is_not_a_short_one(ring: Ring) -> None:
    """Nobody asked for its end, so it has none to tell how much went out."""
    ours, theirs = tcp_pair(32768)
    with ours, theirs:
        operation = send_that_blocks(ring, ours, theirs)
        ours.shutdown(socket.SHUT_WR)
        finish(ring, operation)
        with pytest.raises(BrokenPipeError, match="send on fd"):
            operation.take()


def test_h5_a_result_is_taken_once(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    operation = Handle(ring, ring.send(ours.fileno(), b"abc"))
    with pytest.raises(RuntimeError, match="can't take"):
        operation.take()
    operation.notify(lambda request: None)
    with pytest.raises(RuntimeError, match="waiter already"):
        operation.notify(lambda request: None)
    finish(ring, operation)
    assert operation.take() == 3
    with pytest.raises(RuntimeError, match="can't take"):
        operation.take()
    with pytest.raises(RuntimeError, match="not in flight"):
        operation.notify(lambda request: None)


def test_h6_errors_name_the_operation(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    with open(os.devnull) as file:
        operation = Handle(ring, ring.recv(file.fileno(), 100))
        finish(ring, operation)
        with pytest.raises(OSError, match=f"recv on fd {file.fileno()}") as caught:
            operation.take()
        assert caught.value.errno == errno.ENOTSOCK
    with pytest.raises(OSError, match="send on fd -1"):
        ring.send(-1, b"x")


def test_h6_more_than_the_submission_queue_holds(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    count = 3 * _ring.SQ_ENTRIES
    operations = [Handle(ring, ring.send(ours.fileno(), b"x")) for _ in range(count)]
    finish(ring, *operations)
    assert [operation.take() for operation in operations] == [1] * count


@io_uring_only
def test_h6_more_than_the_completion_queue_holds(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_queues(monkeypatch, 32)
    ring = Ring(buffers=4, buffer_size=4096)
    ours, theirs = pair
    count = 500
    operations = [Handle(ring, ring.send(ours.fileno(), b"x")) for _ in range(count)]
    finish(ring, *operations)
    assert [operation.take() for operation in operations] == [1] * count
    assert ring.counters().cq_overflows > 0
    assert ring.close(timeout=5.0)


def test_h6_a_dry_pool(ring: Ring) -> None:
    """Sixteen receives have data at once, and the pool four buffers."""
    with tcp_pairs(16) as pairs:
        operations = [Handle(ring, ring.recv(ours.fileno(), 100)) for ours, _ in pairs]
        ring.submit()
        for _, theirs in pairs:
            theirs.sendall(b"data")
        for _, theirs in pairs:
            wait_until(lambda theirs=theirs: not unacknowledged(theirs.fileno()))  # type: ignore[misc]
        finish(ring, *operations)
        assert [operation.take() for operation in operations] == [b"data"] * 16
        assert ring.counters().retries > 0 or ring.engine is Engine.EPOLL


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_h6_connect(ring: Ring, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.socket(family) as sock,
        socket.socket(family) as refused,
    ):
        port = listener.getsockname()[1]
        operation = Handle(ring, ring.connect(sock.fileno(), family, (host, port)))
        finish(ring, operation)
        assert operation.take() == 0
        assert sock.getpeername() == listener.getsockname()
        assert os.get_blocking(sock.fileno())
        listener.close()
        operation = Handle(ring, ring.connect(refused.fileno(), family, (host, port)))
        finish(ring, operation)
        with pytest.raises(ConnectionRefusedError, match="connect on fd"):
            operation.take()
        with pytest.raises(ValueError, match="'localhost' is not a numeric address"):
            ring.connect(refused.fileno(), family, ("localhost", port))


@pytest.mark.parametrize("abstract", [False, True])
def test_h6_connect_to_a_unix_socket(ring: Ring, tmp_path: Path, abstract: bool) -> None:
    path = f"\0{tmp_path}" if abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        listener.bind(path)
        operation = Handle(ring, ring.connect(sock.fileno(), socket.AF_UNIX, path))
        finish(ring, operation)
        with pytest.raises(ConnectionRefusedError, match="connect on fd"):
            operation.take()
        listener.listen()
        operation = Handle(ring, ring.connect(sock.fileno(), socket.AF_UNIX, os.fsencode(path)))
        finish(ring, operation)
        assert operation.take() == 0
        assert sock.getpeername() == listener.getsockname()


@pytest.mark.parametrize("then", ["accept", "cancel"])
def test_h6_connect_to_a_busy_unix_socket(ring: Ring, tmp_path: Path, then: str) -> None:
    """It waits until the listener's queue has room."""
    path = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        operation = Handle(ring, ring.connect(sock.fileno(), socket.AF_UNIX, path))
        for _ in range(3):
            drive(ring, 0.02)
        assert not operation.done
        if then == "accept":
            listener.accept()[0].close()
            finish(ring, operation)
            assert operation.take() == 0
        else:
            operation.cancel()
            finish(ring, operation)
            with pytest.raises(OSError, match="connect on fd"):
                operation.take()


@io_uring_only
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_h6_a_shortage_while_the_kernel_is_asked_for_completions(error: int) -> None:
    """io_uring_enter(2) fails that submits nothing and waits for nothing; the ring goes on."""
    if not wakes_event_loops():
        pytest.skip("this kernel is late to wake who sleeps over deferred work")

    def use() -> None:
        ours, theirs = tcp_pair()
        ring = Ring(buffers=4, buffer_size=4096)
        forbid("io_uring_enter", error, arguments={1: 0, 2: 0})
        receive = Handle(ring, ring.recv(ours.fileno(), 100))
        ring.submit()
        ring.arm()
        theirs.sendall(b"data")
        wait_until(lambda: is_awake(ring))  # some kernels signal when others are through
        ring.clear()
        assert not ring.reap()
        ring.arm()
        assert is_awake(ring)  # to try again
        Handle(ring, ring.send(ours.fileno(), b"x"))
        ring.submit()  # runs the work, too
        assert ring.reap()
        assert receive.take() == b"data"

    in_child(use)


@io_uring_only
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_h6_a_shortage_while_waiting(error: int) -> None:
    """The same when it waits for one completion."""

    def use() -> None:
        ours, theirs = tcp_pair()
        ring = Ring(buffers=4, buffer_size=4096)
        forbid("io_uring_enter", error, arguments={1: 0, 2: 1})
        receive = Handle(ring, ring.recv(ours.fileno(), 100))
        ring.wait(3600)
        theirs.sendall(b"data")
        finish(ring, receive)
        assert receive.take() == b"data"

    in_child(use)


def test_h6_a_wake_up_that_fails_is_an_error() -> None:
    """Else an event loop would sleep over what is there already."""
    wakeup_fd = os.eventfd(0, os.EFD_NONBLOCK)
    ring = Ring(wakeup_fd=wakeup_fd, buffers=4, buffer_size=4096)
    ours, theirs = tcp_pair()
    with ours, theirs:
        request = ring.recv(ours.fileno(), 100)
        ring.cancel(request)
        os.eventfd_write(wakeup_fd, 2**64 - 2)
        ring.arm()  # its counter is at the limit, so it is readable
        os.close(wakeup_fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            ring.arm()
        finish_all(ring)
        assert ring.close(timeout=5.0)


def test_h6_an_opcode_that_nothing_uses_need_not_be_known(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        """The engine on a kernel that knows no opcode at all."""

        def __init__(self, library: Any) -> None:
            self._library = library

        def __getattr__(self, name: str) -> object:
            return getattr(self._library, name)

        def rtl_supports(self, engine: object, opcode: int) -> int:
            return 0

    monkeypatch.setattr(_ring, "_lib", Library(extension.lib))
    assert set(Opcode) == set(ring.unsupported())


def test_h7_closing_cancels_and_drains(pair: Pair) -> None:
    ours, theirs = pair
    before = open_fds()
    ring = Ring(buffers=4, buffer_size=4096)
    operation = Handle(ring, ring.recv(ours.fileno(), 100))
    ring.submit()
    assert ring.close(timeout=5.0)
    assert operation.done
    assert open_fds() == before
    with pytest.raises(RuntimeError, match="closed"):
        ring.recv(ours.fileno(), 100)


def test_h7_what_fails_is_never_freed(pair: Pair) -> None:
    ours, theirs = pair
    ring = Ring(buffers=4, buffer_size=4096)
    buffer = bytearray(100)
    operation = Handle(ring, ring.recv_into(ours.fileno(), buffer))
    ring.submit()
    ring.fail(ValueError("made up"))
    with pytest.raises(OSError, match="made up"):
        operation.take()
    assert not ring.close(timeout=1.0)
    theirs.sendall(b"still the kernel's")
    select.select([ours], [], [], LIMIT)
    with pytest.raises(BufferError):
        buffer.append(1)


def test_h8_receive_into_the_callers_memory(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    buffer = bytearray(b"........")
    theirs.sendall(b"data")
    operation = Handle(ring, ring.recv_into(ours.fileno(), memoryview(buffer)[2:]))
    finish(ring, operation)
    assert operation.take() == 4
    assert buffer == b"..data.."
    with pytest.raises((TypeError, BufferError, ValueError)):
        ring.recv_into(ours.fileno(), b"read-only")


def test_h4_a_cancellation_that_comes_at_the_wrong_moment_is_repeated(ring: Ring) -> None:
    """The send is between two queues of the kernel when the peer has just made room."""
    for round_ in range(30):
        ours, theirs = tcp_pair(32768)
        theirs.setblocking(False)
        with ours, theirs:
            operation = Handle(ring, ring.send(ours.fileno(), bytes(30_000_000)))
            ring.submit()
            for _ in range(round_ % 4):
                with suppress(BlockingIOError):
                    theirs.recv(100_000)
            operation.cancel()
            finish(ring, operation)


@pytest.mark.parametrize("after", [0.0, 0.02])
def test_h4_a_deadline_holds(ring: Ring, after: float) -> None:
    for _ in range(10):
        ours, theirs = tcp_pair(8192)
        with ours, theirs:
            deadline = time.monotonic() + after
            send = ring.send(ours.fileno(), bytes(30_000_000), deadline=deadline)
            finish(ring, Handle(ring, send))


def test_h2_an_exception_between_the_table_and_the_engine(ring: Ring, pair: Pair) -> None:
    """A KeyboardInterrupt may come anywhere: the request then ends by its cancellation."""

    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    request = Request(Opcode.RECV, pair[0].fileno())
    with pytest.raises(KeyboardInterrupt):
        ring._start(request, interrupted)
    assert ring.in_flight == 1
    ring.cancel(request)
    assert request.result == -errno.ECANCELED
    assert ring.in_flight == 0


def test_h4_a_sink_that_raises_fails_its_own_operation(ring: Ring) -> None:
    def refuse(view: object) -> None:
        raise MemoryError("no room")

    pairs = [tcp_pair(), tcp_pair()]
    requests = [ring.recv(ours.fileno(), 100) for ours, _ in pairs]
    requests[0].sink = refuse
    operations = [Handle(ring, request) for request in requests]
    for _, theirs in pairs:
        theirs.sendall(b"precious")
    finish(ring, *operations)
    with pytest.raises(OSError, match="no room"):
        operations[0].take()
    assert operations[1].take() == b"precious"
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_h6_callbacks_must_not_drive_the_ring(ring: Ring, pair: Pair) -> None:
    called: list[Request] = []

    def submit(request: Request) -> None:
        called.append(request)
        ring.submit()

    ring.send(pair[0].fileno(), b"x").on_done = submit
    other = Handle(ring, ring.send(pair[0].fileno(), b"x"))
    with pytest.raises(RuntimeError, match="must not drive"):
        finish(ring, other)
    assert called
    assert other.take() == 1


def test_h7_a_ring_that_has_failed_gives_its_descriptors_back(pair: Pair) -> None:
    """And with them what the kernel had locked, and sockets that only its requests held."""
    ours, theirs = pair
    before = open_fds()
    for _ in range(3):
        ring = Ring(buffers=4, buffer_size=4096)
        ring.recv(ours.fileno(), 100)
        ring.submit()
        ring.fail(ValueError("made up"))
        assert not ring.close(timeout=1.0)
    assert open_fds() == before
    ours.close()
    theirs.settimeout(LIMIT)
    assert theirs.recv(1) == b""


def test_h7_unless_its_number_may_be_anothers(pair: Pair) -> None:
    before = open_fds()
    ring = Ring(buffers=4, buffer_size=4096)
    opened = open_fds()
    ring.fail(OSError(errno.EBADF, "made up"))
    assert not ring.close(timeout=1.0)
    assert open_fds() == opened > before


def test_h7_a_drain_that_is_interrupted_frees_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Ring, timeout: float) -> None:
        raise KeyboardInterrupt

    ring = Ring(buffers=4, buffer_size=4096)
    buffer = bytearray(100)
    ring.recv_into(pair[0].fileno(), buffer)
    ring.submit()
    monkeypatch.setattr(Ring, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ring.close(timeout=1.0)
    del ring
    gc.collect()
    with pytest.raises(BufferError):
        buffer.append(1)


@pytest.mark.parametrize(
    "function",
    ["Ring._begin", "open_engine", pytest.param("_open_io_uring", marks=io_uring_only)],
)
def test_h7_a_ring_that_was_only_half_made(function: str) -> None:
    """An exception at any bytecode of its making: no descriptor is left, and no memory, as
    script/test-asan sees."""

    fds = [0]

    def make(injection: RaiseAt) -> None:
        with suppress(InjectedError), injection.tracing():
            ring = Ring(buffers=1, buffer_size=4096, sq_entries=8)
        if not injection.has_raised:
            ring.close(timeout=1.0)
            fds[0] = open_fds()  # the first time, with what is imported meanwhile
        assert open_fds() == fds[0], injection.place

    in_child(lambda: raise_at_each_bytecode(function, make))


def test_h7_a_ring_that_was_freed_can_still_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is raised as an interrupted close is repeated."""

    def interrupted() -> None:
        raise InjectedError

    rings = [Ring() for _ in range(10)]
    for ring in rings:
        with monkeypatch.context() as patch, pytest.raises(InjectedError):
            patch.setattr(ring, "_close_eventfd", interrupted)
            ring.close(timeout=1.0)
        ring.fail(InjectedError())
        ring.close(timeout=1.0)


def test_h7_another_thread_frees_nothing() -> None:
    ring = Ring(buffers=4, buffer_size=4096)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(ring.close(timeout=1.0)))
    thread.start()
    thread.join()
    assert results == [False]


def test_h7_an_accepted_fd_that_nobody_took(ring: Ring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = open_fds()
        for close_first in (False, True):
            ring = Ring(buffers=4, buffer_size=4096)
            operation = Handle(ring, ring.accept(listener.fileno(), OwnedSocket.to_come()))
            with socket.create_connection(listener.getsockname()):
                finish(ring, operation)
                if close_first:
                    assert ring.close(timeout=1.0)
                del operation
                assert ring.close(timeout=1.0)
        assert open_fds() == before


def close_of(ring: Ring, sock: socket.socket, seconds: float) -> Handle:
    """Shut the socket's output and hand it to the ring."""
    deadline = time.monotonic() + seconds
    request = ring.close_fd(sock.fileno(), discard_limit=1 << 30, deadline=deadline)
    sock.shutdown(socket.SHUT_WR)
    sock.detach()
    assert ring.release(request)
    return Handle(ring, request)


def test_h7_a_ring_that_fails_closes_what_it_was_given(pair: Pair) -> None:
    ring = Ring(buffers=4, buffer_size=4096)
    operation = close_of(ring, pair[0], 60)
    ring.submit()
    fds = open_fds()
    ring.fail(ValueError("made up"))
    assert operation.done
    assert open_fds() == fds - 1
    assert not ring.close(timeout=1.0)


def test_h7_a_ring_that_fails_closes_what_nobody_saw_it_accept() -> None:
    ring = Ring(buffers=4, buffer_size=4096)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ring.accept(listener.fileno(), OwnedSocket.to_come())
        with socket.create_connection(listener.getsockname(), LIMIT) as client:
            ring.wait(LIMIT)
            ring.fail(ValueError("made up"))
            assert not client.recv(1)
    assert not ring.close(timeout=1.0)


@pytest.mark.parametrize("cooperative", [False, True])
def test_h7_a_ring_that_has_failed_closes_what_it_then_accepts(cooperative: bool) -> None:
    """The kernel goes on with that, as it did not hear of the failure."""
    ring = Ring(buffers=4, buffer_size=4096, cooperative=cooperative)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ring.accept(listener.fileno(), OwnedSocket.to_come())
        ring.submit()
        ring.fail(ValueError("made up"))
        with socket.create_connection(listener.getsockname(), LIMIT) as client:
            assert not ring.close(timeout=1.0)
            listener.close()
            with suppress(ConnectionResetError):  # it was not accepted any more
                assert not client.recv(1)


def test_h7_a_ring_that_fails_in_a_forked_child_takes_nothing_from_its_parent(ring: Ring) -> None:
    """The queue of completions is in memory that both have."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = OwnedSocket.to_come()
        operation = Handle(ring, ring.accept(listener.fileno(), accepted))
        with socket.create_connection(listener.getsockname()):
            ring.wait(LIMIT)
            in_child(lambda: ring.fail(ValueError("made up")))
            finish(ring, operation)
            assert operation.take() == accepted.fileno()
            accepted.close()


def test_h7_a_ring_that_fails_closes_a_number_once() -> None:
    """Steps: (1) the last input is discarded; (2) the fd is released, and closed; (3) another
    file gets its number; (4) the ring fails, before the row of the close was looked at."""
    ring = Ring(buffers=4, buffer_size=4096)
    ours, theirs = tcp_pair()
    with theirs:
        fd = ours.fileno()
        closing = ring.close_fd(fd, discard_limit=0, deadline=None)
        theirs.shutdown(socket.SHUT_WR)
        while ring.counters().completed < 1:
            ring.wait(1.0)
            ring.reap()
        ours.detach()
        assert ring.release(closing)
        assert theirs.recv(1) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        os.dup2(theirs.fileno(), fd)
        ring.fail(ValueError("made up"))
        os.close(fd)
        assert not ring.close(timeout=1.0)


def test_h7_what_was_not_released_stays_its_owners(pair: Pair) -> None:
    ring = Ring(buffers=4, buffer_size=4096)
    closing = ring.close_fd(pair[0].fileno(), discard_limit=0, deadline=None)
    ring.submit()
    ring.fail(ValueError("made up"))
    assert closing.is_over
    assert not ring.release(closing)
    os.fstat(pair[0].fileno())
    assert not ring.close(timeout=1.0)


def test_h7_a_number_is_closed_by_one_request(ring: Ring, pair: Pair) -> None:
    """A second one would wait for the first, and that for the second."""
    closing = ring.close_fd(pair[0].fileno(), discard_limit=0, deadline=None)
    with pytest.raises(OSError, match="Operation already in progress"):
        ring.close_fd(pair[0].fileno(), discard_limit=0, deadline=None)
    ring.cancel(closing)
    finish(ring, Handle(ring, closing))


@pytest.mark.parametrize("stage", ["queued", "in flight"])
def test_h7_closing_the_ring_resets_what_was_not_released(pair: Pair, stage: str) -> None:
    """The number stays its owner's: nobody else closes it."""
    ours, theirs = pair
    fds = open_fds()
    ring = Ring(buffers=4, buffer_size=4096)
    closing = ring.close_fd(ours.fileno(), discard_limit=0, deadline=None)
    if stage == "in flight":
        ring.submit()
    assert ring.close(timeout=5.0)
    assert closing.result == -errno.ECANCELED
    assert open_fds() == fds
    os.fstat(ours.fileno())
    theirs.settimeout(LIMIT)
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)


def test_h7_a_close_without_a_deadline_waits_for_the_peer(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    closing = ring.close_fd(ours.fileno(), discard_limit=1 << 30, deadline=None)
    ours.shutdown(socket.SHUT_WR)
    ours.detach()
    assert ring.release(closing)
    for _ in range(3):
        theirs.sendall(b"x")
        discarded = ring.counters().completed
        while ring.counters().completed == discarded:
            ring.wait(1.0)
            ring.reap()
        assert not closing.is_over
    theirs.shutdown(socket.SHUT_WR)
    finish(ring, Handle(ring, closing))


def test_h7_nor_in_a_hurry(ring: Ring, pair: Pair) -> None:
    """Without a deadline a close waits only a moment then, too."""
    ours, theirs = pair
    closing = ring.close_fd(ours.fileno(), discard_limit=1 << 30, deadline=None)
    ours.shutdown(socket.SHUT_WR)
    ours.detach()
    assert ring.release(closing)
    ring.submit()
    ring.expedite_close()
    finish(ring, Handle(ring, closing))


@pytest.mark.parametrize("how", ["released", "the ring has failed", "now"])
@pytest.mark.parametrize("seconds", [3600, 0])
def test_h7_closing_does_not_wait_for_so_linger(pair: Pair, how: str, seconds: int) -> None:
    """Its seconds are taken away before close(2); that it asks for a reset stays."""
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    with ours.dup() as same:
        ring = Ring(buffers=4, buffer_size=4096)
        if how == "now":
            close_now(ours.detach())
        else:
            closing = ring.close_fd(ours.fileno(), discard_limit=0, deadline=time.monotonic())
            ours.detach()
            assert ring.release(closing)
            if how == "released":
                finish_all(ring)
            else:
                ring.fail(ValueError("made up"))
        linger = same.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert bool(struct.unpack("ii", linger)[0]) == (seconds == 0)
        ring.close(timeout=5.0)


def test_h7_a_peer_that_floods_does_not_hold_up_a_close(ring: Ring) -> None:
    """What we sent is never all acknowledged, and there is always input."""
    ours, theirs = tcp_pair(32768)
    for sock in (ours, theirs):
        sock.setblocking(False)
    with theirs:
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        ours.setblocking(True)
        operation = close_of(ring, ours, 0.1)

        def is_over_despite_the_flood() -> bool:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                while True:
                    theirs.send(bytes(1000))
            return operation.done

        drive_until(ring, is_over_despite_the_flood)


def test_h7_in_a_hurry_trickling_input_is_not_waited_for(ring: Ring, pair: Pair) -> None:
    ours, theirs = pair
    operation = close_of(ring, ours, 60)
    ring.submit()
    ring.expedite_close()

    def is_over_despite_the_trickle() -> bool:
        with suppress(BrokenPipeError, ConnectionResetError):
            theirs.sendall(b"x")
        return operation.done

    drive_until(ring, is_over_despite_the_trickle)


def test_c14_a_child_that_was_forked_while_another_thread_woke_the_ring(ring: Ring) -> None:
    """That thread, which would give the lock back, is not in the child."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ring._wake_lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        in_child(ring.wake)
    finally:
        over.set()
        thread.join()
