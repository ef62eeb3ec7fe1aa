"""C17: a descriptor's number is used only while it is ours.

A test gives the number that a mistake would use to a bystander: a connection, or a listener, that
nothing must happen to.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import io
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, SocketListener, SocketStream, blocking
from ringtls._drivers.blocking import BlockingDriver
from ringtls._engine import extension
from ringtls._engine import ring as _ring
from ringtls._engine.eventfd import open_eventfd
from ringtls._engine.handle import Handle
from ringtls._engine.request import ignore
from ringtls._engine.ring import Ring
from ringtls._streams import socket as _socket
from ringtls._transports.owned_socket import OwnedSocket

from ..conftest import Contexts
from ..support.faces import AnyStream, BlockingFace, Face, TrioFace
from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.peer import End, Peer, meet
from ..support.processes import fork, in_child
from ..support.rings import drive, drive_until, is_awake
from ..support.streams import open_fds, socket_streams, tcp_pair
from ..support.waiting import LIMIT, closed_while_it_waits

FACES = [TrioFace, BlockingFace]

LAST_WORDS = b"last words"

#: Seconds after which a socket of a test has waited in vain.
Story = Callable[[Face], Awaitable[None]]


def play(
    face_type: type[Face],
    sock: socket.socket,
    theirs: socket.socket,
    contexts: Contexts,
    how: Story,
) -> tuple[CloseOutcome | None, End]:
    """Play a story against a peer that reads to the end: what both sides say of it."""
    peer = Peer(theirs, contexts, server_side=False)
    ends: list[End] = []

    def their_story() -> None:
        peer.handshake()
        ends.append(peer.end())

    thread = Thread(target=their_story)
    face = face_type(sock, contexts)
    thread.start()
    try:
        face.play(how)
    finally:
        thread.join()
    return face.closing.outcome, ends[0]


@contextmanager
def bystander() -> Iterator[set[int]]:
    """A connection that is made now, and must be as new at the end. Gives the numbers it got."""
    left, right = socket.socketpair()  # these get the lowest numbers that are free
    with left, right:
        yield {left.fileno(), right.fileno()}
        for end in (left, right):
            end.settimeout(LIMIT)
            end.sendall(b"as new")
        for end in (left, right):
            assert end.recv(1000) == b"as new"


@pytest.mark.parametrize("face_type", FACES)
def test_c17_the_caller_closes_its_own_object(contexts: Contexts, face_type: type[Face]) -> None:
    ours, theirs = tcp_pair()
    number = ours.fileno()

    async def story(face: Face) -> None:
        stream = face.stream()
        with ours:
            assert ours.fileno() == -1
        assert stream.transport_stream.socket.fileno() == number
        with bystander() as numbers:
            assert number not in numbers
            async with stream:
                await stream.send_all(LAST_WORDS)

    outcome, end = play(face_type, ours, theirs, contexts, story)
    assert outcome is CloseOutcome.CLEAN
    assert end.is_clean
    assert end.data == LAST_WORDS


async def close(stream: AnyStream) -> None:
    stream.transport_stream.socket.close()


async def leave_its_scope(stream: AnyStream) -> None:
    with stream.transport_stream.socket:
        pass


async def close_in_another_thread(stream: AnyStream) -> None:
    thread = Thread(target=stream.transport_stream.socket.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize("how", [close, leave_its_scope, close_in_another_thread])
@pytest.mark.parametrize("face_type", FACES)
def test_c17_close_on_the_streams_socket_begins_the_streams_end(
    contexts: Contexts, face_type: type[Face], how: Callable[[AnyStream], Awaitable[None]]
) -> None:
    ours, theirs = tcp_pair()

    async def story(face: Face) -> None:
        stream = face.stream()
        await stream.do_handshake()
        await stream.send_all(LAST_WORDS)
        with bystander():
            await how(stream)
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            await stream.aclose()
        sock = stream.transport_stream.socket
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        sock.close()

    outcome, end = play(face_type, ours, theirs, contexts, story)
    assert outcome is CloseOutcome.CLEAN
    assert end.is_clean
    assert end.data == LAST_WORDS


def test_c17_a_number_that_is_used_again_is_anothers(ring: Ring) -> None:
    """Steps: (1) the ring closes a connection, of which there is a duplicate, as in a forked child;
    (2) a new connection gets its number; (3) input comes for the old one."""
    old, old_peer = tcp_pair()
    new, new_peer = tcp_pair()
    with old.dup(), old_peer, new, new_peer:
        ring.recv_multishot(old.fileno(), sink=ignore, on_done=lambda request: None)
        ring.submit()
        closing = ring.close_fd(old.fileno(), discard_limit=0, deadline=time.monotonic())
        number = old.detach()
        assert ring.release(closing)
        drive_until(ring, lambda: closing.is_over)
        os.dup2(new.fileno(), number)
        receive = Handle(ring, ring.recv(number, 100))
        ring.submit()
        old_peer.sendall(b"for the old one")
        drive(ring)
        ring.arm()
        assert not is_awake(ring)
        new_peer.sendall(b"for the new one")
        drive_until(ring, lambda: receive.done)
        assert receive.take() == b"for the new one"
        os.close(number)


async def test_c17_close_wakes_who_waits(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        stream.transport_stream.socket.close()
    await stream.aclose()
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert (await in_thread(peer.end)).is_clean


async def test_c17_close_on_the_socket_of_a_stream_without_tls() -> None:
    left, right = await socket_streams()
    await left.send_all(LAST_WORDS)
    left.socket.close()
    assert await right.receive_some() == LAST_WORDS
    assert await right.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")
    await right.aclose()


def test_c17_close_on_the_socket_of_a_blocking_stream_without_tls() -> None:
    ours, theirs = tcp_pair()
    stream = blocking.SocketStream(ours)
    stream.send_all(LAST_WORDS)
    stream.socket.close()
    with theirs:
        theirs.settimeout(LIMIT)
        assert theirs.recv(100) == LAST_WORDS
        assert theirs.recv(100) == b""
    BlockingDriver.current().end()


async def test_c17_what_would_part_the_socket_from_its_stream_is_refused() -> None:
    left, right = await socket_streams()
    async with left, right:
        sock = left.socket
        with pytest.raises(io.UnsupportedOperation, match=r"detach .* use dup\(\)"):
            sock.detach()
        with pytest.raises(io.UnsupportedOperation, match=r"use trio\.fail_after\(\)"):
            sock.settimeout(1.0)
        with pytest.raises(io.UnsupportedOperation, match=r"use trio\.fail_after\(\)"):
            sock.setblocking(False)
        sock.setblocking(True)
        own = sock.dup()
        own.detach()
        with socket.socket(fileno=os.dup(sock.fileno())) as own, sock.dup() as duplicate:
            assert own.getpeername() == duplicate.getpeername() == sock.getpeername()
        await left.send_all(b"still works")
        assert await right.receive_some() == b"still works"


async def test_c17_a_socket_is_taken_over_once(contexts: Contexts) -> None:
    ours, theirs = tcp_pair()
    async with SocketStream(ours) as stream:
        with pytest.raises(OSError, match="taken over before") as caught:
            SocketStream(ours)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(ValueError, match="belongs to another stream"):
            SocketStream(stream.socket)
        tls = contexts.server.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
        with tls, pytest.raises(TypeError, match="TLS connection already"):
            SocketStream(tls)


async def test_c17_what_is_refused_stays_the_callers() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(ValueError, match="SOCK_STREAM"):
            SocketStream(datagram)
        assert datagram.fileno() >= 0


async def test_c17_a_socket_of_trio_is_taken_over() -> None:
    ours, theirs = tcp_pair()
    with theirs:
        taken = trio.socket.from_stdlib_socket(ours)
        async with SocketStream(taken) as stream:
            assert taken.fileno() == ours.fileno() == -1
            taken.close()
            await stream.send_all(b"x")
            assert theirs.recv(10) == b"x"


async def test_c17_c14_a_forked_child_closes_its_own_copy(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    sock = stream.transport_stream.socket
    child = fork()
    if child == 0:
        sock.close()
        os._exit(0 if sock.fileno() == -1 else 1)
    _, status = await in_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    async with stream:
        await stream.send_all(LAST_WORDS)
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == LAST_WORDS


def test_c17_a_ring_that_ends_before_the_connection_takes_the_number_along() -> None:
    """As when a trio run crashes: the ring's close resets what is still to be sent."""
    ours, theirs = tcp_pair(16384)
    driver = BlockingDriver()
    stream = _socket.SocketStream._driven_by(driver, ours)
    sock = stream.socket
    with theirs, driver.call():
        stream._transport.enqueue(bytes(5_000_000))
        stream._closing.start(60.0)
        assert stream._closing.outcome is None
        with bystander():
            assert driver.ring.close(timeout=10.0)
            assert sock.fileno() == -1


class Short:
    """cffi, where memory is short once the engine has told what has ended."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def unpack(self, *arguments: Any) -> Any:
        raise MemoryError


def test_c17_a_ring_that_fails_once_it_has_closed_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. The engine closes it, 2. it is given to a bystander, 3. the ring fails, and has not looked
    at 1."""
    ours, theirs = tcp_pair()
    ring = Ring(buffers=4, buffer_size=4096)
    number = ours.fileno()
    closing = ring.close_fd(number, discard_limit=0, deadline=time.monotonic())
    ours.detach()
    assert ring.release(closing)
    monkeypatch.setattr(_ring, "_ffi", Short(extension.ffi))
    with theirs:
        with pytest.raises(MemoryError) as caught:
            while not closing.is_over:
                ring.wait(LIMIT)
                ring.reap()
        with bystander() as numbers:
            assert number in numbers
            ring.fail(caught.value)
        assert closing.is_over
    ring.close(timeout=LIMIT)


# Listeners


def listening(*, blocking: bool = True) -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(blocking)
    return sock


async def is_served(listener: SocketListener, address: tuple[str, int]) -> bool:
    """Have it accept a connection."""
    with socket.create_connection(address) as client:
        async with await listener.accept() as stream:
            await stream.send_all(b"served")
            return await in_thread(client.recv, 100) == b"served"


@pytest.mark.parametrize("default_timeout", [None, 5.0])
@pytest.mark.parametrize("is_blocking", [True, False])
async def test_c17_a_listener_leaves_the_mode_of_the_file_alone(
    is_blocking: bool, default_timeout: float | None
) -> None:
    sock = listening(blocking=is_blocking)
    copy = os.dup(sock.fileno())
    before = fcntl.fcntl(copy, fcntl.F_GETFL)
    socket.setdefaulttimeout(default_timeout)
    try:
        async with SocketListener(sock) as listener:
            assert fcntl.fcntl(copy, fcntl.F_GETFL) == before
            listener.socket.dup().close()
            listener.socket.setblocking(is_blocking)
            with pytest.raises(io.UnsupportedOperation):
                listener.socket.setblocking(not is_blocking)
            assert await is_served(listener, sock.getsockname())
            assert fcntl.fcntl(copy, fcntl.F_GETFL) == before
    finally:
        socket.setdefaulttimeout(None)
    assert fcntl.fcntl(copy, fcntl.F_GETFL) == before
    os.close(copy)


async def test_c17_a_listener_does_not_freeze_another_process() -> None:
    sock = listening(blocking=False)
    begin, have_begun = os.pipe()
    child = fork()
    if child == 0:
        signal.alarm(int(LIMIT))
        os.read(begin, 1)
        try:
            sock.accept()
        except BlockingIOError:
            os._exit(0)
        os._exit(1)
    async with SocketListener(sock) as listener:
        operation = listener.start_accept()
        await trio.testing.wait_all_tasks_blocked()
        os.write(have_begun, b"x")
        _, status = await in_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        operation.cancel()
        with pytest.raises(OSError, match="accept on fd"):  # else it may take what comes next
            await operation
        assert await is_served(listener, sock.getsockname())
    os.close(begin)
    os.close(have_begun)


@pytest.mark.parametrize("of_trio", [False, True])
async def test_c17_the_caller_goes_on_to_use_its_listening_socket(of_trio: bool) -> None:
    sock = listening()
    address = sock.getsockname()
    callers = trio.socket.from_stdlib_socket(sock) if of_trio else sock
    async with SocketListener(callers) as listener:
        assert await is_served(listener, callers.getsockname())
        assert callers.getsockname() == listener.socket.getsockname() == address
    assert callers.fileno() == -1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_c17_the_caller_closes_its_listening_socket() -> None:
    """1. An accept is made, 2. the number freed and a bystander's, 3. the accept submitted."""
    sock = listening()
    address, number = sock.getsockname(), sock.fileno()
    listener = SocketListener(sock)
    accept = listener.start_accept()
    sock.close()
    with listening() as bystanders:
        assert bystanders.fileno() == number
        await trio.testing.wait_all_tasks_blocked()
        with socket.create_connection(bystanders.getsockname()) as client:
            bystanders.settimeout(LIMIT)
            bystanders.accept()[0].close()
            assert client.recv(1) == b""
        with pytest.raises(trio.ClosedResourceError), socket.create_connection(address):
            await accept
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        await listener.aclose()
        assert bystanders.fileno() == number
        bystanders.getsockname()


async def test_c17_a_closed_listening_socket_ends_all_who_accept() -> None:
    sock = listening()
    address = sock.getsockname()
    listener = SocketListener(sock)
    fds = open_fds()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(closed_while_it_waits, listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        sock.close()
        with socket.create_connection(address) as client:
            assert await in_thread(client.recv, 1) == b""
    assert open_fds() == fds - 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.parametrize("in_its_thread", [True, False])
async def test_c17_close_on_the_listeners_socket_closes_the_listener(in_its_thread: bool) -> None:
    sock = listening()
    address = sock.getsockname()
    listener = SocketListener(sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_while_it_waits, listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        with bystander():
            if in_its_thread:
                listener.socket.close()
            else:
                await in_thread(listener.socket.close)
    assert sock.fileno() == listener.socket.fileno() == -1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.parametrize("of_trio", [False, True])
def test_c17_a_listeners_socket_is_closed_after_the_run(of_trio: bool) -> None:
    listeners = []
    sock = listening()

    async def main() -> None:
        callers = trio.socket.from_stdlib_socket(sock) if of_trio else sock
        listeners.append(SocketListener(callers))

    trio.run(main)
    listeners[0].socket.close()
    assert listeners[0].socket.fileno() == -1
    assert (sock.fileno() == -1) is not of_trio  # trio closes its sockets within a run only
    sock.close()


async def test_c17_a_dropped_listener_leaves_the_callers_socket() -> None:
    sock = listening()
    listener = SocketListener(sock)
    fds = open_fds()
    gc.disable()
    try:
        del listener
        assert open_fds() == fds - 1
        async with SocketListener(sock) as another:
            assert await is_served(another, sock.getsockname())
    finally:
        gc.enable()


async def test_c17_c14_a_forked_child_closes_its_own_copy_of_a_listener() -> None:
    sock = listening()
    async with SocketListener(sock) as listener:
        child = fork()
        if child == 0:
            listener.socket.close()
            os._exit(0 if listener.socket.fileno() == sock.fileno() == -1 else 1)
        _, status = await in_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await is_served(listener, sock.getsockname())


async def test_c17_a_listener_without_descriptors_to_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with listening() as sock:
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", none_left)
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                SocketListener(sock)
        async with SocketListener(sock) as listener:
            assert await is_served(listener, sock.getsockname())
            with pytest.raises(ValueError, match="belongs to another"):
                SocketListener(listener.socket)


@pytest.mark.parametrize(
    "function", ["OwnedSocket.shared_with", "OwnedSocket.taken_from", "OwnedSocket._adopt"]
)
def test_c17_a_descriptor_has_one_owner_wherever_an_exception_is_raised(function: str) -> None:
    """The caller, the object that takes it over or shares it, or nobody: then it is closed."""

    def play(injection: RaiseAt) -> None:
        before = open_fds()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with injection.tracing(), suppress(InjectedError):
                OwnedSocket.shared_with(ours).close()
                OwnedSocket.taken_from(ours).close()
            is_the_callers = ours.fileno() >= 0
            assert open_fds() == before + 1 + is_the_callers, injection.place
            if is_the_callers:
                os.fstat(ours.fileno())

    in_child(lambda: raise_at_each_bytecode(function, play))


def test_c16_an_eventfd_has_an_owner_wherever_an_exception_is_raised() -> None:
    def play(injection: RaiseAt) -> None:
        before = open_fds()
        with injection.tracing(), suppress(InjectedError):
            open_eventfd().close()
        assert open_fds() == before, injection.place

    in_child(lambda: raise_at_each_bytecode("open_eventfd", play))
