"""C16: an exception at any call, or any bytecode, of ours: nothing waits for ever.

An exception is raised at the nth call, or bytecode, of ringtls' own code, once in a run, for many
n. Every run ends, and every peer sees an end or a break. What a peer has read is a prefix of what
it was sent.

RINGTLS_INJECTIONS=10000 plays that many in each test, where by default it is a few; with
`-o faulthandler_timeout=0`, as that takes longer than a test may.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import trio

from ringtls import (
    AsyncDestructor,
    CloseOutcome,
    SocketStream,
    TlsStream,
    blocking,
    open_tcp_listeners,
)
from ringtls._accepting import accept_by_callbacks
from ringtls._drivers.blocking import BlockingDriver, _end_this_thread
from ringtls._task import Task

from ..conftest import Contexts
from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.peer import Peer, adapted_socket_stream
from ..support.processes import in_child
from ..support.streams import open_fds, tcp_pair

INJECTIONS = int(os.environ.get("RINGTLS_INJECTIONS", "4"))

SENT = bytes(range(256)) * 100

#: What a task may see of an exception somewhere in ringtls.
SEEN = (InjectedError, trio.BrokenResourceError, trio.ClosedResourceError, OSError, RuntimeError)

Play = Callable[[Contexts, list[socket.socket], RaiseAt], None]


def peer_story(sock: socket.socket, contexts: Contexts, received: list[bytes]) -> None:
    """Shakes hands, says something, reads until TCP ends; a peer left alone raises TimeoutError."""
    peer = Peer(sock, contexts, server_side=False)
    with suppress(ConnectionError, ssl.SSLError):
        peer.handshake()
        peer.send(b"to be received")
    received.append(peer.end().data)


async def use(stream: TlsStream[Any]) -> None:
    async with stream:
        await stream.send_all(SENT)
        assert await stream.receive_some()
        await stream.send_all(SENT)


async def lose(stream: TlsStream[Any]) -> None:
    await stream.send_all(SENT)


async def cancelled(stream: TlsStream[Any]) -> None:
    with trio.CancelScope() as scope:
        async with stream:
            await stream.receive_some()
            scope.cancel()
            await stream.receive_some()


def on_trio(make: Callable[[socket.socket], trio.abc.Stream]) -> Play:
    def play(contexts: Contexts, socks: list[socket.socket], injection: RaiseAt) -> None:
        async def task(story: Callable[[TlsStream[Any]], Any], sock: socket.socket) -> None:
            with suppress(*SEEN):
                await story(TlsStream(make(sock), contexts.server, server_side=True))
            gc.collect(0)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for story, sock in zip((use, lose, cancelled), socks, strict=True):
                    nursery.start_soon(task, story, sock)

        with injection.tracing(), suppress(trio.TrioInternalError, *SEEN):
            trio.run(main)

    return play


def on_threads(contexts: Contexts, socks: list[socket.socket], injection: RaiseAt) -> None:
    def one(sock: socket.socket) -> None:
        with blocking.TlsStream(
            blocking.SocketStream(sock), contexts.server, server_side=True
        ) as stream:
            stream.send_all(SENT)
            assert stream.receive_some()
            stream.send_all(SENT)

    def story() -> None:
        with injection.tracing():
            for sock in socks:
                with suppress(*SEEN):
                    one(sock)
            with suppress(*SEEN):
                BlockingDriver.current().end()

    thread = threading.Thread(target=story)
    thread.start()
    thread.join()


PLAYS: dict[str, Play] = {
    "ring": on_trio(SocketStream),
    "adapter": on_trio(adapted_socket_stream),
    "blocking": on_threads,
}


def played(play: Play, contexts: Contexts, injection: RaiseAt) -> bool:
    """One run; was the exception raised?"""
    pairs = [tcp_pair() for _ in range(3)]
    received: list[list[bytes]] = [[] for _ in pairs]
    threads = [
        threading.Thread(target=peer_story, args=(theirs, contexts, data))
        for (_, theirs), data in zip(pairs, received, strict=True)
    ]
    for thread in threads:
        thread.start()
    ours = [ours for ours, _ in pairs]
    del pairs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never started
        play(contexts, ours, injection)
        del ours
        gc.collect()
    for thread in threads:
        thread.join()
    for data in received:
        assert data, f"{injection.place}: a peer was left alone"
        assert (SENT * 2).startswith(data[0]), injection.place
    return injection.has_raised


@pytest.mark.parametrize("event", ["call", "opcode"])
@pytest.mark.parametrize("name", PLAYS)
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_an_exception_anywhere(contexts: Contexts, name: str, event: str) -> None:
    rng = random.Random(16)
    last = 1
    while played(PLAYS[name], contexts, RaiseAt(last, event)):
        last *= 2
    for _ in range(INJECTIONS):
        played(PLAYS[name], contexts, RaiseAt(rng.randrange(1, last), event))


def test_c16_a_task_that_was_only_half_made() -> None:
    half_made = Task.__new__(Task)
    half_made.fail(RuntimeError("nobody is there to hear of it"))


@pytest.mark.long
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_an_exception_where_a_system_task_begins_or_goes_on(contexts: Contexts) -> None:
    number = 1
    while played(PLAYS["adapter"], contexts, RaiseAt(number, "call", "Task.run")):
        number += 1
    assert number > 3  # each stream has one at least


def leave_open(injection: RaiseAt) -> None:
    """A run that ends with a stream open, and its peer and descriptors afterwards."""
    before = open_fds()
    ours, theirs = tcp_pair()
    kept: list[SocketStream] = []

    async def main() -> None:
        kept.append(SocketStream(ours))
        await kept[0].send_all(SENT)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with injection.tracing():
            trio.run(main)
        kept.clear()
    with suppress(ConnectionError):
        while theirs.recv(65536):
            pass
    theirs.close()
    assert open_fds() == before, injection.place


AFTER_THE_RUN = [
    "TrioDriver.after_run",
    "give_up",
    "Ring.close",
    "Ring._drain",
    "Ring._let_go",
    "Ring._free",
]


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("function", AFTER_THE_RUN)
def test_c16_an_exception_after_the_run(function: str) -> None:
    """Descriptors are given back all the same."""
    leave_open(RaiseAt(sys.maxsize, "call"))  # the first ring of a process tries another one
    injection = RaiseAt(1, "call", function)
    leave_open(injection)
    assert injection.has_raised


@pytest.mark.long
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize("function", AFTER_THE_RUN)
def test_c16_an_exception_at_each_bytecode_after_the_run(function: str) -> None:
    raise_at_each_bytecode(function, leave_open)


def leave_all(injection: RaiseAt) -> None:
    """A run with a stream that is open at its end, one that is dropped, and a destructor."""
    pairs = [tcp_pair() for _ in range(2)]
    kept: list[object] = []
    destroyed: list[str] = []

    class Value(AsyncDestructor):
        async def adestroy(self) -> None:
            destroyed.append("value")

    async def use(sock: socket.socket) -> SocketStream:
        stream = SocketStream(sock)
        await stream.send_all(SENT)
        return stream

    async def main() -> None:
        kept.extend([await use(pairs[0][0]), Value()])
        await use(pairs[1][0])
        gc.collect(0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never started
        with injection.tracing():
            trio.run(main)
        kept.clear()
    for _, theirs in pairs:
        with theirs, theirs.makefile("rb") as received:
            assert received.read() == SENT, injection.place
    assert destroyed == ["value"], injection.place


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize(
    "function",
    [
        "Closing.start_as_orphan",
        "Patience.lasts_until",
        "TrioDriver._await_endings",
        "TrioDriver._drain",
        "TrioDriver._drain_destructors",
        "TrioDriver._drain_rest",
        "TrioDriver._end_shield",
        "TrioDriver._pump",
        "TrioDriver._start_late_pump",
        "adopt",
    ],
)
def test_c16_an_exception_in_what_ends_the_run(function: str) -> None:
    """The next one takes over: the run does not crash, and no connection notices."""
    number = 1
    injection = RaiseAt(number, "call", function)
    leave_all(injection)
    assert injection.has_raised
    while injection.has_raised:
        number += 1
        injection = RaiseAt(number, "call", function)
        leave_all(injection)


def leave_a_thread(injection: RaiseAt, *, in_its_end: bool = True) -> None:
    """A thread that ends with a stream open, and its peer and descriptors afterwards."""
    before = open_fds()
    ours, theirs = tcp_pair()
    kept: list[blocking.SocketStream] = []

    def story() -> None:
        with nullcontext() if in_its_end else injection.tracing(), suppress(*SEEN):
            kept.append(blocking.SocketStream(ours))
            kept[0].send_all(SENT)
        with injection.tracing() if in_its_end else nullcontext(), suppress(*SEEN):
            _end_this_thread()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread = threading.Thread(target=story)
        thread.start()
        thread.join()
        kept.clear()
    with theirs, suppress(ConnectionError):
        while theirs.recv(65536):
            pass
    assert open_fds() == before, injection.place
    assert injection.has_raised


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.parametrize(
    "function",
    [
        "BlockingDriver.end",
        "BlockingDriver._await_endings",
        "BlockingDriver._reap",
        "Closing.start",
        "Closing.start_as_orphan",
        "Closing.start_unawaited",
        "Ring._close_eventfd",
        "Ring._let_go",
        "Ring.close",
        "Ring.reap",
        "Call.__enter__",
        "Call.__exit__",
        "adopt",
        "give_up",
    ],
)
def test_c16_an_exception_where_a_thread_ends(function: str) -> None:
    """Its peers are told, and its descriptors are given back."""
    leave_a_thread(RaiseAt(1, "call", function))


@pytest.mark.ringtls_allow_unclosed
def test_c16_what_a_handler_raises_where_a_thread_ends_is_not_the_ring_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it is an OSError, as a TimeoutError is."""
    await_endings = BlockingDriver._await_endings
    to_raise = [TimeoutError("a handler's")]

    def interrupted(self: BlockingDriver) -> None:
        if to_raise:
            raise to_raise.pop()
        await_endings(self)

    monkeypatch.setattr(BlockingDriver, "_await_endings", interrupted)
    ours, theirs = tcp_pair()
    outcomes: list[CloseOutcome | None] = []

    def story() -> None:
        stream = blocking.SocketStream(ours)
        stream.send_all(SENT)
        with warnings.catch_warnings(), pytest.raises(TimeoutError, match="handler"):
            warnings.simplefilter("ignore", ResourceWarning)
            _end_this_thread()
        outcomes.append(stream._stream._closing.outcome)

    with theirs:
        thread = threading.Thread(target=story)
        thread.start()
        received = b"".join(iter(lambda: theirs.recv(65536), b""))
        theirs.close()
        thread.join()
    assert received == SENT
    assert outcomes == [CloseOutcome.CLEAN]


@pytest.mark.ringtls_allow_unclosed
def test_h7_a_thread_gives_a_ring_back_that_has_failed() -> None:
    leave_a_thread(RaiseAt(1, "call", "Ring.reap"), in_its_end=False)


def test_c16_an_exception_where_a_stream_is_closed(contexts: Contexts) -> None:
    """After FIN: the stream is closed, and no task of ours waits for a peer that stays."""
    ours, theirs = tcp_pair()
    run_is_over = threading.Event()
    seen: list[bool] = []

    def story() -> None:
        with theirs:
            Peer(theirs, contexts, server_side=False).handshake()
            seen.append(run_is_over.wait(timeout=30))

    async def main() -> None:
        stream = TlsStream(adapted_socket_stream(ours), contexts.server, server_side=True)
        await stream.do_handshake()
        await stream.aclose()

    thread = threading.Thread(target=story)
    thread.start()
    injection = RaiseAt(1, "call", "StreamTransport._let_go")
    with injection.tracing():
        trio.run(main)
    run_is_over.set()
    thread.join()
    assert injection.has_raised
    assert seen == [True]


@pytest.mark.long
def test_c16_an_exception_at_each_bytecode_where_a_listener_is_closed() -> None:
    """Its descriptors are given back."""

    async def main(injection: RaiseAt) -> None:
        [listener] = await open_tcp_listeners(0, host="127.0.0.1")
        with injection.tracing(), suppress(InjectedError):
            await listener.aclose()

    def play(injection: RaiseAt) -> None:
        before = open_fds()
        trio.run(main, injection)
        assert open_fds() == before, injection.place

    in_child(lambda: raise_at_each_bytecode("_Listening._stop", play))


@pytest.mark.long
@pytest.mark.parametrize(
    "function",
    [
        "Acceptor._done",
        "Request._adopt",
        "Request.complete",
        "Ring.reap",
        "SocketListener._accepted",
    ],
)
def test_c16_an_exception_at_each_bytecode_where_a_connection_is_accepted(function: str) -> None:
    """Who accepts hears of it, and the connection is closed."""

    async def main(injection: RaiseAt) -> None:
        ended = trio.Event()

        def begin(stream: SocketStream) -> None:
            stream.close_unclean()
            ended.set()

        async def accept() -> None:
            with suppress(InjectedError, OSError):  # by it the ring fails, perhaps
                await accept_by_callbacks(listener, begin)
            ended.set()

        [listener] = await open_tcp_listeners(0, host="127.0.0.1")
        with socket.create_connection(listener.socket.getsockname()):
            async with listener, trio.open_nursery() as nursery:
                with injection.tracing():
                    nursery.start_soon(accept)
                    await ended.wait()
                nursery.cancel_scope.cancel()

    def play(injection: RaiseAt) -> None:
        before = open_fds()
        trio.run(main, injection)
        gc.collect()
        assert open_fds() == before, injection.place

    in_child(lambda: raise_at_each_bytecode(function, play))


@pytest.mark.long
@pytest.mark.parametrize(
    "function",
    [
        "Handle.__init__",
        "Handle.take",
        "Operation.__init__",
        "Operation.wait",
        "Request.complete",
        "Ring._end",
        "Ring._start",
        "Ring.reap",
        "SocketListener._accepted",
        "SocketListener.accept",
        "SocketListener.start_accept",
        "SocketStream._begin",
        "TrioDriver.wait",
    ],
)
def test_c16_an_exception_at_each_bytecode_where_one_connection_is_accepted(function: str) -> None:
    """No descriptor is left: by ``accept``, or by ``start_accept``."""

    async def main(injection: RaiseAt) -> None:
        [listener] = await open_tcp_listeners(0, host="127.0.0.1")
        with socket.create_connection(listener.socket.getsockname()):
            async with listener:
                waits = function == "SocketListener.accept"
                accept = listener.accept if waits else listener.start_accept
                with suppress(InjectedError, OSError), injection.tracing():
                    (await accept()).close_unclean()

    def play(injection: RaiseAt) -> None:
        before = open_fds()
        with suppress(InjectedError):  # by it the ring has failed, and the end of the run raises it
            trio.run(main, injection)
        assert open_fds() == before, injection.place

    in_child(lambda: raise_at_each_bytecode(function, play))
