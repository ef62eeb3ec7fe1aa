"""Connecting by the ring, to an address that is known."""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import SocketStream, blocking, open_tcp_stream, open_tls_over_tcp_stream
from ringtls import _connecting as connecting
from ringtls._connecting import Target, connect, connect_now, connect_to_any
from ringtls._engine.address import Address
from ringtls._streams.self_connection import refuse_itself

from .support.hosts import Host
from .support.streams import open_fds, reset, tcp_pair
from .support.waiting import LIMIT, cut_off, until

#: Connections that a cancellation meets.
ROUNDS = 64


@contextmanager
def listening(
    family: socket.AddressFamily, address: Address, backlog: int = 0
) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(backlog)
        yield listener


@contextmanager
def full(path: str) -> Iterator[None]:
    """A listener at which the next connection waits."""
    with ExitStack() as stack:
        stack.enter_context(listening(socket.AF_UNIX, path))
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                sock.connect(path)
            except BlockingIOError:
                break
        yield


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
async def test_connect(family: socket.AddressFamily, tmp_path: Path) -> None:
    hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    with listening(family, hosts.get(family, str(tmp_path / "socket"))) as listener:
        async with await connect(family, listener.getsockname()) as stream:
            with listener.accept()[0] as theirs:
                await stream.send_all(b"hello")
                assert theirs.recv(5) == b"hello"
                theirs.sendall(b"well")
                assert await stream.receive_some() == b"well"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
async def test_connect_now(family: socket.AddressFamily, tmp_path: Path) -> None:
    hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    with listening(family, hosts.get(family, str(tmp_path / "socket")), backlog=1) as listener:
        stream = connect_now(family, listener.getsockname())
        assert stream is not None
        async with stream:
            with listener.accept()[0] as theirs:
                await stream.send_all(b"hello")
                assert theirs.recv(5) == b"hello"
                theirs.sendall(b"well")
                assert await stream.receive_some() == b"well"


async def test_connect_now_waits_for_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with full(path):
        assert connect_now(socket.AF_UNIX, path) is None  # makes the ring
        before = open_fds()
        assert connect_now(socket.AF_UNIX, path) is None
        assert connect_now(socket.AF_INET, ("192.0.2.1", 443)) is None  # it is not tried
        with pytest.raises(FileNotFoundError):
            connect_now(socket.AF_UNIX, str(tmp_path / "other"))
        assert open_fds() == before
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        connect_now(socket.AF_INET, address)


async def test_a_refusal_leaves_nothing_open() -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await connect(socket.AF_INET, address)  # makes the ring
    before = open_fds()
    with pytest.raises(ConnectionRefusedError):
        await connect(socket.AF_INET, address)
    with pytest.raises(ValueError, match="not a numeric address"):
        await connect(socket.AF_INET, ("localhost", 1))
    assert open_fds() == before


async def test_cancelled_there_is_no_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with full(path):
        await cut_off(connect, socket.AF_UNIX, path)  # makes the ring
        before = open_fds()
        await cut_off(connect, socket.AF_UNIX, path)
        assert open_fds() == before


async def test_a_default_timeout_does_not_keep_the_ring_from_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    socket.setdefaulttimeout(1.0)
    try:
        with full(path):
            await cut_off(connect, socket.AF_UNIX, path)
    finally:
        socket.setdefaulttimeout(None)


async def test_h4_there_is_a_stream_or_nothing_is_left_open() -> None:
    """The cancellation meets the connection, in each round at another moment."""
    with listening(socket.AF_INET, ("127.0.0.1", 0), backlog=ROUNDS) as listener:
        address = listener.getsockname()
        connected = 0
        before: int | None = None
        for checkpoints in range(ROUNDS):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_later, scope, checkpoints % 4)
                    async with await connect(socket.AF_INET, address):
                        connected += 1
            before = before or open_fds()
        await until(lambda: before is not None and open_fds() <= before)
    assert connected


async def _cancel_later(scope: trio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    scope.cancel()


# Several addresses


@pytest.fixture
def swallower(tmp_path: Path) -> Iterator[Target]:
    """An address that answers nothing."""
    path = str(tmp_path / "full")
    with full(path):
        yield socket.AF_UNIX, path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def refuser() -> Target:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        return socket.AF_INET, listener.getsockname()


async def test_one_that_answers_nothing_hides_no_other(
    swallower: Target, listener: socket.socket
) -> None:
    before: int | None = None
    for _ in range(2):
        targets = [swallower, (socket.AF_INET, listener.getsockname())]
        target, stream = await connect_to_any(targets)
        assert target == targets[1]
        assert stream.socket.getpeername() == target[1]
        stream.close_unclean()
        listener.accept()[0].close()
        before = before or open_fds()
    await until(lambda: before is not None and open_fds() <= before)


async def test_after_a_refusal_the_next_is_tried_at_once(
    refuser: Target, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "HAPPY_EYEBALLS_DELAY", math.inf)
    there = socket.AF_INET, listener.getsockname()
    target, stream = await connect_to_any([refuser, there])
    stream.close_unclean()
    assert target == there


async def test_all_refuse(refuser: Target, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect_to_any([refuser, (socket.AF_UNIX, str(tmp_path / "missing"))])
    with pytest.raises(ConnectionRefusedError):
        await connect_to_any([refuser])


async def test_all_fail_and_something_ran_short_here(
    refuser: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That can be helped, which a refusal can't."""

    async def connect_or_run_short(*target: Any) -> SocketStream:
        if target == short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await connect(*target)

    short = socket.AF_INET, ("192.0.2.1", 443)
    monkeypatch.setattr(connecting, "connect", connect_or_run_short)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)) as caught:
        await connect_to_any([refuser, short, refuser])
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    refused, ran_short = errno.ECONNREFUSED, errno.EMFILE
    assert [getattr(each, "errno", 0) for each in cause.exceptions] == [refused, ran_short, refused]


async def test_one_that_is_slow_may_still_answer(
    refuser: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for when the others have failed, and when none is left."""
    monkeypatch.setattr(connecting, "HAPPY_EYEBALLS_DELAY", 0)
    path = str(tmp_path / "slow")
    with ExitStack() as stack:
        listener = stack.enter_context(listening(socket.AF_UNIX, path))
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(path)
        slow = socket.AF_UNIX, path
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await trio.testing.wait_all_tasks_blocked()
                listener.accept()[0].close()

            nursery.start_soon(answer)
            target, stream = await connect_to_any([slow, refuser])
        stream.close_unclean()
        assert target == slow


async def test_of_two_that_answer_one_is_kept(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both connections are made in the same tick."""
    monkeypatch.setattr(connecting, "HAPPY_EYEBALLS_DELAY", 0)
    there = socket.AF_INET, listener.getsockname()
    both = trio.Event()
    made = []

    async def connect_together(*target: Any) -> SocketStream:
        made.append(await connect(*target))
        if len(made) == 2:
            both.set()  # and there is no checkpoint before both have returned
        else:
            await both.wait()
        return made.pop()

    listener.listen(2)
    monkeypatch.setattr(connecting, "connect", connect_together)
    _, stream = await connect_to_any([there, there])
    async with stream:
        await stream.send_all(b"x")
        assert sorted(await in_thread(ends, listener, 2)) == [b"", b"x"]


async def test_h4_cancelled_as_one_answers_there_is_no_connection(
    listener: socket.socket, refuser: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.CancelScope() as scope:

        async def connect_and_cancel(*target: Any) -> SocketStream:
            stream = await connect(*target)
            scope.cancel()
            return stream

        monkeypatch.setattr(connecting, "connect", connect_and_cancel)
        await connect_to_any([(socket.AF_INET, listener.getsockname()), refuser])
    assert scope.cancelled_caught
    assert await in_thread(ends, listener, 1) == [b""]


def ends(listener: socket.socket, count: int) -> list[bytes]:
    """What each of so many connections that wait brings first; b"" is a reset."""
    said = []
    for _ in range(count):
        with listener.accept()[0] as sock:
            sock.settimeout(LIMIT)
            try:
                said.append(sock.recv(1) or b"FIN")
            except ConnectionResetError:
                said.append(b"")
    return said


# A port at which nobody listens, and which the kernel chooses for the caller

PORT = 50000
NOBODY = "127.0.0.1", PORT


@pytest.fixture
def lonely_host() -> Iterator[Host]:
    """A host on which each connection to PORT would meet itself."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip: install the package iproute2")
    try:
        host = Host()
    except PermissionError as error:
        pytest.skip(f"no host can be made: {error}")
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    try:
        host.ip("link set lo up")
        try:
            host.call(ports.write_text, f"{PORT} {PORT}")
        except OSError as error:
            pytest.skip(f"its ports can't be set: {error}")
        with host.call(socket.create_connection, NOBODY) as sock:
            assert sock.getsockname() == sock.getpeername()
            reset(sock)
        yield host
    finally:
        host.shut_down()


async def at_once() -> None:
    connect_now(socket.AF_INET, NOBODY)


async def in_a_thread() -> None:
    blocking.open_tls_over_tcp_stream(*NOBODY, timeout=LIMIT)


@pytest.mark.parametrize(
    "open_it",
    [
        partial(connect, socket.AF_INET, NOBODY),
        at_once,
        partial(open_tcp_stream, *NOBODY),
        partial(open_tls_over_tcp_stream, *NOBODY),
        in_a_thread,
    ],
    ids=["connect", "connect_now", "open_tcp_stream", "open_tls_over_tcp_stream", "blocking"],
)
def test_who_would_meet_itself_is_refused(
    lonely_host: Host, open_it: Callable[[], Awaitable[object]]
) -> None:
    async def main() -> None:
        before = None
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                await open_it()
            before = before or open_fds()
        assert open_fds() == before

    lonely_host.call(trio.run, main)
    with lonely_host.call(socket.socket) as sock:
        sock.bind(NOBODY)  # nothing holds the port, not even TIME_WAIT


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_connection_to_itself(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        name = sock.getsockname()
        sock.connect(name)
        with pytest.raises(ConnectionRefusedError, match="met itself"):
            refuse_itself(sock)
    with listening(family, name), socket.create_connection(name[:2]) as sock:
        refuse_itself(sock)
        assert sock.fileno() >= 0


def test_a_connection_that_is_broken_already() -> None:
    ours, theirs = tcp_pair()
    with ours:
        reset(theirs)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        refuse_itself(ours)
        assert ours.fileno() >= 0
