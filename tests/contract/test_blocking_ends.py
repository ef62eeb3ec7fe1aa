"""C1 on the blocking face: how connections end, many of each kind, and a SIGINT at any bytecode.

RINGTLS_CASES sets how many: a fiftieth of it (500 by default) of each kind of end.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest

from ringtls import CloseOutcome, blocking
from ringtls._drivers.blocking import BlockingDriver
from ringtls._streams.closing import Closing

from ..conftest import Contexts
from ..support.peer import End, Peer
from ..support.signals import SignalAtBytecode, signal_in_the_ring
from ..support.streams import open_fds, tcp_pair
from ..support.tracing import traced_by
from ..support.waiting import LIMIT, wait_until
from .test_interrupted import SENT, peer_story
from .test_random import CASES

pytestmark = pytest.mark.ringtls_allow_unclosed

ENDS = max(CASES // 50, 1)

rng = random.Random(5)


class LeaveError(Exception):
    """The handler's own exception."""


class Meeting:
    """A blocking stream, and a peer that reads when it may, at the latest while ours closes."""

    def __init__(self, contexts: Contexts) -> None:
        ours, theirs = tcp_pair(32768)
        self.may_read = threading.Event()
        self.ends: list[End] = []
        self._peer = Peer(theirs, contexts, server_side=False)
        self.stream: blocking.TlsStream | None = blocking.TlsStream(
            blocking.SocketStream(ours), contexts.server, server_side=True, shutdown_timeout=LIMIT
        )
        self.closing: Closing = self.stream._closing
        self._thread = threading.Thread(target=self._their_story)
        self._thread.start()
        self.stream.do_handshake()

    def _their_story(self) -> None:
        self._peer.handshake()
        with suppress(BrokenPipeError, ConnectionResetError):  # ours has ended
            self._peer.send(bytes(20_000))
        wait_until(lambda: self.may_read.is_set() or self.closing.started)
        self.ends.append(self._peer.end())

    def take(self) -> blocking.TlsStream:
        stream, self.stream = self.stream, None
        assert stream is not None
        return stream

    def end(self) -> End:
        """How the peer saw it."""
        self.may_read.set()
        self._thread.join()
        return self.ends[0]


def by_return(meeting: Meeting) -> None:
    meeting.may_read.set()
    with meeting.take() as stream:
        received = 0
        while received < 20_000:
            received += len(stream.receive_some())
        stream.send_all(SENT)


def by_exception(meeting: Meeting) -> None:
    meeting.may_read.set()
    with pytest.raises(LeaveError), meeting.take() as stream:
        stream.send_all(SENT)
        raise LeaveError


def by_unread_input(meeting: Meeting) -> None:
    meeting.may_read.set()
    with meeting.take() as stream:
        stream.send_all(SENT)


def by_sigint(meeting: Meeting) -> None:
    """In a send into a peer that has stalled."""
    size = rng.randrange(1, 300_000)
    with signal_in_the_ring(), pytest.raises(KeyboardInterrupt), meeting.take() as stream:
        while True:
            stream.send_all(bytes(size))


def by_timeout(meeting: Meeting) -> None:
    stream = meeting.take()
    stream.timeout = rng.random() * 0.01
    with pytest.raises(TimeoutError), stream:
        while True:
            stream.send_all(SENT)


def by_drop(meeting: Meeting) -> None:
    meeting.may_read.set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        meeting.take().send_all(SENT)
        gc.collect()


WAYS = [by_return, by_exception, by_unread_input, by_sigint, by_timeout, by_drop]


@pytest.mark.parametrize("way", WAYS)
def test_d5_ends(contexts: Contexts, way: Callable[[Meeting], None]) -> None:
    BlockingDriver.current()
    fds, threads = open_fds(), set(threading.enumerate())
    for number in range(ENDS):
        meeting = Meeting(contexts)
        way(meeting)
        end = meeting.end()
        assert end.is_clean, (number, end.close_notify, end.transport, end.trailing, end.error)
        assert meeting.closing.outcome is CloseOutcome.CLEAN
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    BlockingDriver.current().end()
    assert open_fds() <= fds - 2  # the ring's own
    assert set(threading.enumerate()) <= threads  # trio's, of earlier tests, end when idle


def play(contexts: Contexts, number: int) -> tuple[bool, End]:
    """As in test_interrupted: was the signal given, and how did the peer see the end?"""
    ours, theirs = tcp_pair()
    ends: list[End] = []
    peer = Peer(theirs, contexts, server_side=False)
    thread = threading.Thread(target=peer_story, args=(peer, ends))
    signaller = SignalAtBytecode(number)
    thread.start()

    def our_story() -> None:
        stream = blocking.TlsStream(
            blocking.SocketStream(ours), contexts.server, server_side=True, shutdown_timeout=LIMIT
        )
        stream.do_handshake()
        with traced_by(signaller), stream:
            stream.send_all(SENT)
            stream.timeout = 0
            with suppress(TimeoutError):
                stream.receive_some()
            stream.timeout = None
            stream.send_all(SENT)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it may come before close() is reached
        with suppress(KeyboardInterrupt):
            our_story()
        gc.collect()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return signaller.left <= 0, ends[0]


def test_d5_sigint_at_any_bytecode(contexts: Contexts) -> None:
    bytecodes = random.Random(3)
    last = 1
    while play(contexts, last)[0]:
        last *= 2
    for _ in range(max(CASES // 5, 1)):
        number = bytecodes.randrange(1, last)
        _, end = play(contexts, number)
        assert end.is_clean, (number, end.close_notify, end.transport)
        assert (SENT * 2).startswith(end.data), number
    BlockingDriver.current().end()
