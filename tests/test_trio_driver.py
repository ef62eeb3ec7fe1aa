"""How a trio run drives its ring, and what happens when the ring fails or the run ends."""

from __future__ import annotations

import gc
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import outcome
import pytest
import trio
import trio.testing

from ringtls import (
    AsyncDestructor,
    CloseOutcome,
    Operation,
    SocketListener,
    SocketStream,
    TlsStream,
    open_tcp_stream,
)
from ringtls._drivers import busy_poll as _polling
from ringtls._drivers import trio as _trio_driver
from ringtls._drivers.trio import TrioDriver
from ringtls._engine.request import Request
from ringtls._engine.ring import Ring
from ringtls._streams.closing import Closing

from .conftest import Contexts
from .support.clogging import SMALL, clog, clog_socket
from .support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from .support.peer import Peer, Transport, meet
from .support.processes import in_child
from .support.streams import handshaken, open_fds, socket_streams, tcp_pair
from .support.waiting import LIMIT, closed_while_it_waits, cut_off, until, wait_until, when_all_wait

NS_PER_SECOND = 10**9


async def test_one_ring_in_a_run() -> None:
    assert TrioDriver.current() is TrioDriver.current()


async def test_a_deadline_that_has_come_keeps_nobody_awake() -> None:
    """Whoever waits until all others sleep does not let trio sleep itself."""
    over = trio.Event()
    ring = TrioDriver.current().ring
    ring.timer(time.monotonic() + 0.001, on_done=lambda request: over.set())
    await over.wait()
    with trio.fail_after(LIMIT):
        await trio.testing.wait_all_tasks_blocked()


def test_c17_what_a_run_has_left_behind_wakes_nobody_any_more() -> None:
    async def main() -> TrioDriver:
        return TrioDriver.current()

    driver = trio.run(main)
    descriptors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(10)]  # one has the driver's number
    driver.wake()
    for fd in descriptors:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        os.close(fd)


def test_outside_of_a_run() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(RuntimeError, match=r"inside trio\.run"):
        SocketStream(ours)


def test_several_runs_one_after_the_other() -> None:
    async def main() -> None:
        left, right = await socket_streams()
        async with left, right:
            await left.send_all(b"x")
            assert await right.receive_some() == b"x"

    trio.run(main)
    fds = open_fds()
    trio.run(main)
    assert open_fds() == fds


def test_several_runs_at_once() -> None:
    done = []

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right:
            for _ in range(100):
                await left.send_all(b"x")
                assert await right.receive_some() == b"x"
        done.append(True)

    threads = [threading.Thread(target=trio.run, args=(main,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("method", ["submit", "reap"])
def test_a_failure_of_the_ring_reaches_every_waiter(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nobody sleeps for ever: receives fail, and a close ends."""
    failed = []

    async def receive(stream: trio.abc.ReceiveStream) -> None:
        with pytest.raises(trio.BrokenResourceError, match="made up"):
            await stream.receive_some()
        failed.append(stream)

    async def main() -> None:
        left, right = await socket_streams()
        stream, peer = await meet(contexts, buffer_size=SMALL)
        await clog(stream)

        def fail(self: Ring) -> None:
            raise OSError("made up")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, left)
            nursery.start_soon(receive, right)
            nursery.start_soon(stream.aclose)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(Ring, method, fail)
            TrioDriver.current().ring.wake()
        assert len(failed) == 2
        with pytest.raises(OSError, match="made up"):
            await left.receive_some()
        for each in (left, right):
            each.socket.close()
            each._is_owner = False
        peer.sock.close()

    trio.run(main)


def test_c21_the_ring_fails_while_a_connection_that_is_broken_off_is_delivered() -> None:
    """What was cut must not end by FIN, though nobody resets it in time any more."""
    ours, theirs = tcp_pair(SMALL)

    async def main() -> None:
        stream = SocketStream(ours)
        await clog_socket(stream)
        stream._closing.reset_on_error = True  # as a relay does
        stream._closing.start(after_error=True)
        assert TrioDriver.current().statistics().connections_closing == 1
        TrioDriver.current()._fail(OSError("made up"))

    trio.run(main)
    theirs.settimeout(LIMIT)
    with theirs, pytest.raises(ConnectionResetError):
        while theirs.recv(65536):
            pass


def test_h7_a_run_whose_ring_has_failed_gives_its_descriptors_back() -> None:
    async def main() -> None:
        driver = TrioDriver.current()
        assert driver.ring
        driver._fail(ValueError("made up"))

    def run() -> None:
        before = open_fds()
        trio.run(main)
        assert open_fds() == before

    in_child(run)  # a thread of another test might end its ring meanwhile


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("function", ["current", "_start"])
def test_h7_a_driver_that_was_only_half_made(function: str) -> None:
    """An exception at each bytecode: the run ends, and no descriptor is left."""

    async def main() -> None:
        TrioDriver.current()

    def play(injection: RaiseAt) -> None:
        with injection.tracing(), suppress(InjectedError):
            trio.run(main)

    def run() -> None:
        before = open_fds()
        raise_at_each_bytecode(f"TrioDriver.{function}", play)
        gc.collect()
        assert open_fds() == before

    in_child(run)


@pytest.mark.parametrize("what", ["receive", "operation", "accept"])
async def test_who_is_shielded_from_a_cancellation_that_has_come(what: str) -> None:
    """What was waited for is cancelled by then, and has no result: as elsewhere in trio, the
    cancellation comes out."""
    left, right = await socket_streams()
    listener = SocketListener(socket.create_server(("127.0.0.1", 0)))
    async with left, right, listener:
        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": left.receive_some,
            "operation": lambda: left.start_receive().wait(),
            "accept": listener.accept,
        }
        outer, inner = trio.CancelScope(), trio.CancelScope()

        def cancel() -> None:
            outer.cancel()
            inner.shield = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(when_all_wait, cancel)
            with outer, inner:
                await waits[what]()
        assert outer.cancelled_caught
        await right.send_all(b"usable")
        assert await left.receive_some() == b"usable"


@pytest.mark.long
@pytest.mark.parametrize("function", ["TrioDriver.wait.<locals>.cancel", "Ring.cancel"])
def test_c16_an_exception_at_each_bytecode_of_a_cancellation(function: str) -> None:
    """trio would crash if it were raised in what it calls. Who is cancelled wakes all the same."""

    async def main() -> None:
        left, right = await socket_streams()
        async with left, right:
            await cut_off(left.receive_some)

    def play(injection: RaiseAt) -> None:
        with injection.tracing(), suppress(InjectedError):
            trio.run(main)

    raise_at_each_bytecode(function, play)


def interrupt_checkpoints() -> None:
    """At each bytecode."""

    async def main() -> None:
        with suppress(InjectedError):
            await TrioDriver.uncancellable_checkpoint()
        await trio.lowlevel.checkpoint()

    def play(injection: RaiseAt) -> None:
        with injection.tracing():
            trio.run(main)

    raise_at_each_bytecode("uncancellable_checkpoint", play)


@pytest.mark.long
def test_c16_an_exception_at_each_bytecode_of_a_checkpoint() -> None:
    """trio would crash if a task went on that is scheduled."""
    interrupt_checkpoints()


@pytest.mark.long
def test_c16_an_exception_in_a_checkpoint_where_trio_asserts_nothing() -> None:
    code = f"from {__name__} import interrupt_checkpoints; interrupt_checkpoints()"
    command = [sys.executable, "-O", "-c", code]
    subprocess.run(command, cwd=Path(__file__).parents[1], timeout=LIMIT, check=True)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_an_exception_at_each_bytecode_of_a_wait() -> None:
    """Nobody is woken by what it waited for, out of another sleep."""

    async def main(injection: RaiseAt) -> None:
        kept: list[InjectedError] = []  # and with it the operation
        ours, theirs = tcp_pair()
        theirs.sendall(b"something")
        async with SocketStream(ours) as stream:
            try:
                with injection.tracing():
                    await stream.peek(100)
            except InjectedError as error:
                kept.append(error)
            assert await stream.receive_some() == b"something"
            kept.clear()
            theirs.close()

    def play(injection: RaiseAt) -> None:
        trio.run(main, injection)

    raise_at_each_bytecode("TrioDriver.wait", play, in_awaits=False)


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("how", ["aclose", "close_unclean", "drop", "end of run"])
def test_streams_end_after_the_ring_has_failed(contexts: Contexts, how: str) -> None:
    """Nothing was in flight when it failed; the peer is reset."""
    kept: list[TlsStream] = []
    peers: list[Peer] = []

    async def main() -> None:
        stream, peer = await meet(contexts)
        peers.append(peer)
        TrioDriver.current()._fail(OSError("made up"))
        if how == "aclose":
            await stream.aclose()
            await stream.aclose()
            assert stream.close_outcome is CloseOutcome.PEER_RESET
        elif how == "close_unclean":
            stream.close_unclean()
        elif how == "drop":
            with pytest.warns(ResourceWarning, match="unclosed stream"):
                del stream
            await until(lambda: TrioDriver.current().tally.orphans_adopted)
        else:
            kept.append(stream)

    if how == "end of run":
        with pytest.warns(ResourceWarning, match="unclosed stream"):
            trio.run(main)
    else:
        trio.run(main)
    assert peers[0].end().transport is Transport.RST


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("error")
def test_streams_left_open_where_warnings_are_errors(
    contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[tuple[TlsStream, Peer]] = []

    async def main() -> None:
        for _ in range(3):
            kept.append(await meet(contexts))

    trio.run(main)
    for _, peer in kept:
        assert peer.end().is_clean
    assert caplog.text.count("unclosed stream") == 3


def test_closing_in_a_later_run(contexts: Contexts) -> None:
    kept: list[tuple[TlsStream, Peer]] = []

    async def main() -> None:
        stream, peer = await meet(contexts)
        await stream.aclose()
        kept.append((stream, peer))

    trio.run(main)
    trio.run(kept[0][0].aclose)
    assert kept[0][1].end().is_clean


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed stream")
def test_the_last_close_ends_while_the_loop_stays_awake(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sleep counts as short, and it looks long enough to see all that the peer does."""
    monkeypatch.setattr(_polling, "STREAK", 1)
    monkeypatch.setattr(_polling, "SHORT_SLEEP", 10 * NS_PER_SECOND)
    monkeypatch.setattr(_trio_driver, "BUSY_POLL_NS", NS_PER_SECOND // 4)
    ends = []

    async def main() -> None:
        stream, peer = await meet(contexts, buffer_size=SMALL)
        await clog(stream)
        threading.Thread(target=read_late, args=(stream._closing, peer)).start()

    def read_late(closing: Closing, peer: Peer) -> None:
        wait_until(lambda: closing.started)
        ends.append(peer.end())

    run = threading.Thread(target=trio.run, args=(main,), daemon=True)
    run.start()
    run.join(LIMIT)
    assert not run.is_alive()
    assert ends[0].is_clean


def test_the_run_waits_for_a_socket_that_was_closed_in_a_finalizer() -> None:
    """The late pump: nothing ran on the ring before, and the system tasks are gone."""
    generators = []
    sent = []

    async def talk() -> AsyncIterator[None]:
        left, right = socket.socketpair()
        try:
            yield
        finally:
            stream = SocketStream(left)
            with trio.CancelScope(shield=True):
                await stream.send_all(b"x")
                sent.append(right.recv(1))
                nothing = trio.move_on_after(0.01)
                with nothing:
                    await stream.receive_some()
                assert nothing.cancelled_caught
                await stream.aclose()
            right.close()

    async def main() -> None:
        generator = talk()
        generators.append(generator)
        await anext(generator)

    def run() -> None:
        fds = open_fds()
        trio.run(main)
        generators.clear()
        gc.collect()
        assert sent == [b"x"]
        assert open_fds() == fds

    in_child(run)  # a thread of another test might end its ring meanwhile


@pytest.mark.ringtls_allow_unclosed
def test_the_main_task_fails_while_operations_are_in_flight() -> None:
    kept = []

    async def main() -> None:
        left, right = await socket_streams()
        kept.extend([left, right])
        trio.lowlevel.spawn_system_task(left.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        raise KeyError

    fds = open_fds()
    with pytest.warns(ResourceWarning, match="unclosed stream"), pytest.raises(KeyError):
        trio.run(main)
    assert open_fds() == fds


def test_guest_mode() -> None:
    """The host's loop runs the ring's thread."""
    todo: queue.SimpleQueue[object] = queue.SimpleQueue()
    outcomes: list[outcome.Outcome[bytes]] = []

    async def main() -> bytes:
        left, right = await socket_streams()
        async with left, right:
            await left.send_all(b"guest")
            return await right.receive_some()

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=todo.put,
        done_callback=outcomes.append,
    )
    while not outcomes:
        function = todo.get(timeout=LIMIT)
        assert callable(function)
        function()
    assert outcomes[0].unwrap() == b"guest"


def test_guest_mode_where_the_host_sends(contexts: Contexts) -> None:
    """While trio sleeps, and nothing else would wake it."""
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    outcomes: list[outcome.Outcome[None]] = []
    sends: list[Callable[[], Operation[int] | int]] = []
    started: list[Operation[int] | int] = []

    async def main() -> None:
        client, server = await handshaken(contexts)
        left, right = await socket_streams()
        async with client, server, left, right:
            await server.send_all(b"no session ticket is on its way after this")
            await client.receive_some()
            sends.append(partial(client.send_nowait, b"one"))
            assert await server.receive_some() == b"one"
            sends.append(partial(left.start_send, b"two"))
            assert await right.receive_some() == b"two"
            operation = started.pop()
            assert isinstance(operation, Operation)
            assert await operation == 3

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=todo.put,
        done_callback=outcomes.append,
    )
    while not outcomes:
        try:
            todo.get(timeout=0.05 if sends else LIMIT)()
        except queue.Empty:  # trio sleeps
            started.append(sends.pop()())
    outcomes[0].unwrap()


async def test_listener_and_open_tcp_stream() -> None:
    listener = SocketListener(socket.create_server(("127.0.0.1", 0)))
    port = listener.socket.getsockname()[1]
    client = await open_tcp_stream("127.0.0.1", port)
    server = await listener.accept()
    async with client, server:
        await client.send_all(b"hello")
        assert await server.receive_some(3) == b"hel"
        assert await server.receive_some() == b"lo"
    await listener.aclose()
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_what_is_accepted_blocks() -> None:
    """Though sockets have a timeout by default. Not every kernel waits for one that does not."""
    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as listener:
        client = await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        socket.setdefaulttimeout(10)
        try:
            server = await listener.accept()
        finally:
            socket.setdefaulttimeout(None)
        async with client, server:
            assert os.get_blocking(server.socket.fileno())


async def test_what_is_accepted_has_no_delay() -> None:
    async with SocketListener(socket.create_server(("127.0.0.1", 0))) as listener:
        client = await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        server = await listener.accept()
        async with client, server:
            for stream in (client, server):
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_closing_a_listener_wakes_those_who_accept() -> None:
    listener = SocketListener(socket.create_server(("127.0.0.1", 0)))
    fds = open_fds()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(closed_while_it_waits, listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    assert open_fds() == fds - 2  # the caller's, and the duplicate


async def test_what_is_no_stream_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(ValueError, match="SOCK_STREAM"):
            SocketStream(datagram)
        with pytest.raises(ValueError, match="SOCK_STREAM"):
            SocketListener(datagram)
    with socket.socket() as sock, pytest.raises(ValueError, match="listening"):
        SocketListener(sock)
    with socket.socket() as sock:
        sock.close()
        with pytest.raises(OSError, match="this socket is closed"):
            SocketStream(sock)


@pytest.mark.parametrize("what", ["stream", "listener"])
async def test_a_socket_has_let_go_of_its_number_before_the_ring_may_close_it(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Else what interrupts between the two leaves it with two owners, and it is closed twice."""
    numbers = []
    release = Ring.release

    def look(self: Ring, closing: Request) -> bool:
        numbers.append(resource.socket.fileno())
        return release(self, closing)

    monkeypatch.setattr(Ring, "release", look)
    resource: SocketStream | SocketListener
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if what == "listener":
            resource = SocketListener(listening.dup())
        else:
            resource = SocketStream(socket.create_connection(listening.getsockname()))
        await resource.aclose()
    assert numbers == [-1]


async def test_lost_pumps_keep_nothing_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there is none any more, and a late one is to come where the run ends."""
    sleeps: list[float] = []

    class Watch(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            sleeps.append(timeout)

    async def lost(self: TrioDriver) -> None:
        raise InjectedError

    class Value(AsyncDestructor):
        async def adestroy(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(TrioDriver, "_next_wakeup", lost)
        driver = TrioDriver.current()
        await until(lambda: driver.failure is not None and not driver._pump_runs)
    async with Value():
        trio.lowlevel.add_instrument(Watch())
        with trio.fail_after(LIMIT):
            for _ in range(5):
                await trio.testing.wait_all_tasks_blocked()  # none is, where something is awake
    assert len(sleeps) < 20
