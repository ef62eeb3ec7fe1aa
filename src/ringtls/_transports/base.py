"""What both transports have in common: their limits, and how they report a broken connection."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

import trio

from .._engine.request import ignore

if TYPE_CHECKING:
    from .._engine.request import Sink
    from .._interfaces import Driver, OnClosed, WaitQueue

__all__ = [
    "ACKNOWLEDGE_ONCE",
    "ANSWER_LIMIT",
    "DISCARD_LIMIT",
    "HIGH_WATER",
    "INPUT_LIMIT",
    "LARGEST_TRANSFER",
    "RECEIVE_SIZE",
    "RESET_AT_CLOSE",
    "BaseTransport",
    "acknowledgement_pauses",
    "broken",
    "reset_met",
]

#: Bytes in the outbox from which on a sender waits.
HIGH_WATER = 256 * 1024

#: Bytes of answers, on top of HIGH_WATER unsent ones, from which on nothing more is to be answered.
ANSWER_LIMIT = 16 * 1024

#: Bytes of input thrown away after our FIN before the socket is closed all the same.
DISCARD_LIMIT = 32 * 1024 * 1024

RECEIVE_SIZE = 65536

#: One send, or receive into the caller's memory, takes no more than this.
LARGEST_TRANSFER = 1 << 30

#: Bytes of input that nobody has asked for from which on no more is received.
INPUT_LIMIT = 256 * 1024


#: For TCP_QUICKACK: acknowledge what has come, and go on delaying. With 1 all that comes next
#: would be acknowledged at once, too.
ACKNOWLEDGE_ONCE = 2


#: struct linger for SO_LINGER (socket(7)): close(2) resets the connection.
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


#: Seconds; see acknowledgement_pauses().
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.25


def acknowledgement_pauses() -> Iterator[float]:
    """Seconds between the looks at what the peer's TCP has acknowledged: no event tells of it.
    What takes long is looked at less often."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _nothing() -> None:
    """What is done at the end of input before anything is attached."""


class _Announced:
    """A wait queue (WaitQueue of _interfaces), of which something else hears as well."""

    __slots__ = ("_on_wake", "_queue", "wait", "wait_uncancellable")

    def __init__(self, queue: WaitQueue, on_wake: Callable[[], object]) -> None:
        self._queue = queue
        self._on_wake = on_wake
        self.wait = queue.wait
        self.wait_uncancellable = queue.wait_uncancellable

    def wake(self) -> None:
        self._queue.wake()
        self._on_wake()


class BaseTransport:
    """The part of Transport (_interfaces) that does not depend on what carries the bytes."""

    __slots__ = (
        "_arrived",
        "_on_closed",
        "_on_end",
        "_on_flushed",
        "_passes_on",
        "_progress",
        "_sink",
        "answered",
        "closing",
        "driver",
        "error",
        "input_error",
        "name",
        "on_crash",
        "unsent",
    )

    has_stream_below: ClassVar[bool] = False

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.closing = False
        self.on_crash: Callable[[BaseException], object] | None = None
        self._on_flushed: Callable[[OSError | None], object] | None = None
        self._on_closed: OnClosed | None = None
        # Input
        self._sink: Sink = ignore
        self._on_end: Callable[[], object] = _nothing
        self.input_error: OSError | None = None
        self._arrived: WaitQueue = driver.wait_queue()
        self._passes_on = False
        # Output
        self.unsent = 0
        self.answered = 0
        self.error: OSError | None = None
        self._progress: WaitQueue = driver.wait_queue()

    def expect_input(self) -> None:
        """Nothing that can be done beforehand."""

    def attach(self, sink: Sink, on_end: Callable[[], object]) -> None:
        self._sink = sink
        self._on_end = on_end

    def announce_input(self, on_arrival: Callable[[], object] | None) -> None:
        queue = self.driver.wait_queue()  # nobody waits in the one before
        self._arrived = queue if on_arrival is None else _Announced(queue, on_arrival)

    def pass_on(
        self, sink: Sink, on_end: Callable[[], object], on_change: Callable[[], object]
    ) -> None:
        self.attach(sink, on_end)
        self._passes_on = True
        self._arrived = _Announced(self._arrived, on_change)
        self._progress = _Announced(self._progress, on_change)

    def answer(self, output: bytes) -> None:
        self.enqueue(output)
        if self.unsent < HIGH_WATER:
            self.answered = 0
        else:
            self.answered += len(output)

    def answers_too_much(self) -> bool:
        if self.answered < ANSWER_LIMIT:
            return False
        if self.has_unsent(HIGH_WATER):
            return True
        self.answered = 0
        return False

    def enqueue(self, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def check_sendable(self) -> None:
        if self.error is not None:
            raise broken(self.error)

    async def wait_sent(self, *, below: int = HIGH_WATER) -> bool:
        waited = False
        self.check_open()
        while self.has_unsent(below):
            await self._progress.wait()
            waited = True
            self.check_open()
        self.check_sendable()
        return waited

    def has_unsent(self, least: int) -> bool:
        return self.unsent >= least

    def unacknowledged(self) -> int:
        return 0

    async def wait_acknowledged(self) -> None:
        await self.wait_sent(below=1)
        pauses = acknowledgement_pauses()
        while self.unacknowledged():
            if self.is_gone():
                raise broken(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            await self._sleep(next(pauses))
            self.check_open()
            self.check_sendable()

    def is_gone(self) -> bool:
        """True if the connection, of which something is unacknowledged, was reset."""
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> None:
        """In real time: the clock of a run may stand still."""
        raise NotImplementedError

    def _accept_no_more(self, on_flushed: Callable[[OSError | None], object] | None) -> None:
        self.closing = True
        self._on_flushed = on_flushed
        self._wake_all()

    def _flushed(self, error: OSError | None) -> None:
        if self._on_flushed is not None:
            on_flushed, self._on_flushed = self._on_flushed, None  # no reference cycle
            on_flushed(error)

    def _wake_all(self) -> None:
        self._arrived.wake()
        self._progress.wake()

    def check_open(self) -> None:
        if self.closing:
            raise trio.ClosedResourceError("this stream was closed")


def reset_met(error: OSError | None) -> OSError | None:
    """Given why sending failed: why input that reads as ended did not end, but broke.

    The kernel reports a reset once: after a send has met it, input reads as ended. A send fails
    with EPIPE where the peer's FIN came before its reset.
    """
    return None if error is None or error.errno == errno.EPIPE else error


def broken(error: OSError) -> trio.BrokenResourceError:
    """The error of a system call as trio's streams report it."""
    exception = trio.BrokenResourceError(f"the connection broke: {error.strerror or error}")
    exception.__cause__ = error
    return exception
