"""The seam between TLS and what carries its bytes.

A TlsStream talks to its transport through the Transport protocol, and a transport waits
through the Driver protocol. So TLS and closing are written once: a driver that suspends tasks
makes them asynchronous, one that blocks the thread makes them blocking.

RingTransport is the transport on an io_uring.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from ._operation import Handle
from ._ring import reset_connection

if TYPE_CHECKING:
    from ._closing import Closing
    from ._operation import Request, Sink
    from ._ring import Ring
    from ._statistics import Tally

__all__ = [
    "HIGH_WATER",
    "RECEIVE_SIZE",
    "Driver",
    "RingTransport",
    "Signal",
    "Transport",
    "as_bytes",
    "as_count",
    "broken",
    "reset_met",
]

#: Bytes in the outbox from which on a sender waits.
HIGH_WATER = 256 * 1024

#: Bytes of input thrown away after our FIN before the socket is closed all the same.
DISCARD_LIMIT = 32 * 1024 * 1024

RECEIVE_SIZE = 65536

#: One send, or receive into the caller's memory, takes no more than this.
LARGEST_TRANSFER = 1 << 30

#: Bytes of input that nobody has asked for from which on no more is received.
INPUT_LIMIT = 256 * 1024


class Signal(Protocol):
    """Something to wait for that happens again and again."""

    def wake(self) -> None:
        """Wake all who wait. Called from tasks and from the ring's callbacks."""

    async def wait(self) -> None:
        """Wait for the next ``wake``; a cancellation ends it."""

    async def wait_uncancellable(self) -> None:
        """Wait for the next ``wake``; nothing else ends it."""


class Driver(Protocol):
    """How a caller waits for a ring."""

    @property
    def ring(self) -> Ring: ...

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that made this."""

    @property
    def tally(self) -> Tally: ...

    def signal(self) -> Signal: ...

    async def wait(self, operation: Handle) -> int | bytes:
        """Wait for an operation of the ring and take its result.

        If this is cancelled, the operation is cancelled too and its end awaited: the
        cancellation comes out only if the operation had no result of its own.
        """

    async def checkpoint(self) -> None:
        """Let others run, and a cancellation out."""

    async def checkpoint_if_cancelled(self) -> None:
        """Let a cancellation out; if there is none, do not suspend."""

    async def cancel_shielded_checkpoint(self) -> None:
        """Let others run; a cancellation stays for the next checkpoint."""

    async def uncancellable_checkpoint(self) -> None:
        """The same, and a KeyboardInterrupt stays too. The run need not be this driver's."""

    def register(self, closing: Closing) -> None:
        """The end of this run must wait for this connection's end, and see to it."""

    def unregister(self, closing: Closing) -> None: ...

    def call_soon(self, function: Callable[[], object]) -> None:
        """Run a function in the ring's thread. May be called from any thread."""

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child: what it inherited is its parent's."""


class Transport(Protocol):
    """What TLS needs of a byte stream. Only ``receive``, ``wait_sent`` and ``detach`` wait."""

    unsent: int
    """Accepted bytes that may be unsent: no less than there are."""

    error: OSError | None
    """Why nothing can be sent any more."""

    @property
    def driver(self) -> Driver: ...

    @property
    def name(self) -> str:
        """Who is at the other end, for log records and warnings."""

    def attach(self, sink: Sink, on_end: Callable[[], object]) -> None:
        """Pass what comes to ``sink`` from now on, and its end to ``on_end``.

        Some may be passed on while nobody waits in ``receive``, but no more than INPUT_LIMIT
        and what is on its way meanwhile.
        """

    async def receive(self) -> None:
        """Wait until something was passed on. For callers that have used up what had come.

        May return without that. Several tasks may wait.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: it was closed while this waited.
        """

    async def detach(self) -> None:
        """Pass on no more."""

    def enqueue(self, data: bytes) -> None:
        """Accept bytes for sending, in order; never blocks."""

    def check_sendable(self) -> None:
        """Raise trio.BrokenResourceError if an earlier send failed."""

    async def wait_sent(self, *, below: int = HIGH_WATER) -> bool:
        """Wait until less than ``below`` bytes are unsent. True if that took a while.

        Raises:
          trio.BrokenResourceError: they can't be sent.
          trio.ClosedResourceError: the stream was closed while this waited.
        """

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: Callable[[], object],
    ) -> None:
        """Accept no more, wake all who wait, send what is accepted until ``deadline``.

        ``on_flushed`` is called with the reason it failed or None, then ``on_closed`` when
        after end_output() or reset() everything is released.
        """

    def end_output(self) -> None:
        """Send FIN; discard input until the peer's FIN or a limit, then release everything.

        Raises:
          OSError: the connection is broken.
        """

    def reset(self) -> None:
        """Break the connection so that the peer can't mistake it for an end."""


class RingTransport:
    """A connected socket on a ring.

    The socket, which must be blocking, belongs to this object from now on.
    """

    __slots__ = (
        "_arrived",
        "_close_request",
        "_input",
        "_input_ended",
        "_input_error",
        "_on_end",
        "_on_flushed",
        "_operations",
        "_outbox",
        "_progress",
        "_ring",
        "_sink",
        "_unread",
        "closing",
        "driver",
        "error",
        "name",
        "socket",
        "unsent",
    )

    def __init__(self, driver: Driver, ring: Ring, sock: socket.socket) -> None:
        self.driver = driver
        self._ring = ring
        self.socket = sock
        self.closing = False
        self.name = _peer_name(sock)
        self._close_request: Request | None = None
        self._operations: set[Handle] = set()
        self._on_flushed: Callable[[OSError | None], object] | None = None
        # Input
        self._sink: Sink | None = None
        self._on_end: Callable[[], object] | None = None
        self._input: Request | None = None
        self._input_ended = False
        self._input_error: OSError | None = None
        self._unread = 0
        self._arrived = driver.signal()
        # Output
        self._outbox: Request | None = None
        self._progress = driver.signal()
        self.unsent = 0
        self.error: OSError | None = None

    # As the transport of a TLS stream

    def attach(self, sink: Sink, on_end: Callable[[], object]) -> None:
        self._sink = sink
        self._on_end = on_end

    async def receive(self) -> None:
        if self._input is None:
            self._start_input()
        self._unread = 0
        await self._arrived.wait()
        if self.closing or (self._input_error is not None and not self._unread):
            self._check_receivable()

    async def detach(self) -> None:
        while self._input is not None:
            self._ring.cancel(self._input)
            await self._arrived.wait()
        self.check_open()
        if self._input_error is not None:
            raise broken(self._input_error)
        self._sink = None

    def _start_input(self) -> None:
        self._check_receivable()
        self._input = self._ring.input(
            self.socket.fileno(), sink=self._take_input, on_done=self._end_input
        )

    def _take_input(self, view: bytes | bytearray | memoryview) -> None:
        if self._sink is None or self.closing:
            return
        self._sink(view)
        self._unread += len(view)
        if self._unread >= INPUT_LIMIT and self._input is not None:
            self._ring.cancel(self._input)
        self._arrived.wake()

    def _end_input(self, request: Request) -> None:
        self._input = None
        error = request.error() or reset_met(self.error)
        if error is None:
            self._input_ended = True
            if self._on_end is not None:
                self._on_end()
        elif error.errno != errno.ECANCELED:
            self._input_error = error
        self._arrived.wake()

    def _check_receivable(self) -> None:
        self.check_open()
        if self._input_error is not None:
            raise broken(self._input_error)
        if self._input_ended:
            raise trio.BrokenResourceError("the connection has ended")

    def enqueue(self, data: bytes) -> None:
        if self.error is not None:
            return
        try:
            if self._outbox is None:
                self._outbox = self._ring.outbox(
                    self.socket.fileno(), on_progress=self._progressed, on_done=self._end_outbox
                )
            self.unsent = self._ring.put(self._outbox, data)
        except OSError as error:
            self.error = error

    def check_sendable(self) -> None:
        if self.error is not None:
            raise broken(self.error)

    async def wait_sent(self, *, below: int = HIGH_WATER) -> bool:
        waited = False
        self.check_open()
        while self.unsent >= below and self._outbox is not None:
            self.unsent = self._ring.unsent(self._outbox, below)
            if self.unsent >= below:
                await self._progress.wait()
                waited = True
                self.check_open()
        self.check_sendable()
        return waited

    def _progressed(self, unsent: int) -> None:
        self.unsent = unsent
        self._progress.wake()

    def _end_outbox(self, request: Request) -> None:
        self._outbox = None
        self.unsent = 0
        self.error = self.error or request.error()
        self._progress.wake()
        if self._on_flushed is not None:
            on_flushed, self._on_flushed = self._on_flushed, None  # no reference cycle
            on_flushed(self.error)

    # As a stream of its own

    async def receive_bytes(self, max_bytes: int) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes; b"" at the end of input."""
        return as_bytes(await self._perform(self._ring.recv(self._fd(), max_bytes)))

    async def receive_into(self, memory: memoryview) -> int:
        """Receive into the caller's memory; returns how much, 0 at the end of input."""
        request = self._ring.recv_into(self._fd(), memory[:LARGEST_TRANSFER])
        del memory  # the traceback of an error must not keep it exported
        return as_count(await self._perform(request))

    async def send(self, data: memoryview) -> int:
        """Send from the caller's memory; returns how much went out."""
        return as_count(await self._perform(self._ring.send(self._fd(), data[:LARGEST_TRANSFER])))

    async def wait_writable(self) -> None:
        """Wait until a send would not block."""
        await self._perform(self._ring.poll_writable(self._fd()))

    # What nobody waits for: the ring cuts a receive off at the close, and our FIN a send.

    def start_receive(self, max_bytes: int) -> Request:
        return self._ring.recv(self._fd(), max_bytes)

    def start_send(self, data: memoryview) -> Request:
        return self._ring.send(self._fd(), data[:LARGEST_TRANSFER])

    def check_error(self, error: OSError) -> None:
        """Raise what the stream makes of an operation's failure. Cancelling it is the caller's
        own affair."""
        self.check_open()
        if error.errno != errno.ECANCELED:
            raise broken(error) from error

    # Ending

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: Callable[[], object],
    ) -> None:
        self.closing = True
        for operation in self._operations:
            if not operation.done:
                operation.cancel()
        self._arrived.wake()
        self._progress.wake()

        def closed(request: Request) -> None:
            if request.failure is not None:
                on_flushed(request.error())
            on_closed()

        try:
            self._close_request = self._ring.close_fd(
                self.socket.fileno(), discard_limit=DISCARD_LIMIT, deadline=deadline, on_done=closed
            )
        except OSError as error:  # the ring has failed
            on_flushed(error)
            on_closed()
            return
        if self._outbox is None or self._finish(self._outbox, deadline):
            on_flushed(self.error)
        else:
            self._on_flushed = on_flushed

    def _finish(self, outbox: Request, deadline: float) -> bool:
        try:
            return self._ring.finish(outbox, deadline)
        except OSError as error:
            self.error = error
            return True

    def end_output(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        finally:
            self._release()

    def reset(self) -> None:
        try:
            reset_connection(self.socket.fileno())
        finally:
            self._release()

    def _release(self) -> None:
        if self._close_request is not None and self._ring.release(self._close_request):
            self.socket.detach()  # the ring closes it
        else:
            self.socket.close()

    # Helpers

    def _fd(self) -> int:
        self.check_open()
        return self.socket.fileno()

    def check_open(self) -> None:
        if self.closing:
            raise trio.ClosedResourceError("this stream was closed")

    async def _perform(self, request: Request) -> int | bytes:
        operation = Handle(self._ring, request)
        self._operations.add(operation)
        try:
            result = await self.driver.wait(operation)
        except OSError as error:
            self.check_open()
            raise broken(error) from error
        finally:
            self._operations.discard(operation)
        self.check_open()
        return result


def reset_met(error: OSError | None) -> OSError | None:
    """Given why sending failed: why input that reads as ended did not end, but broke.

    The kernel reports a reset once: after a send has met it, input reads as ended. A send fails
    with EPIPE where the peer's FIN came before its reset.
    """
    return None if error is None or error.errno == errno.EPIPE else error


def as_bytes(result: int | bytes) -> bytes:
    """The result of a receive from the pool: at the end of input it is 0."""
    return result if isinstance(result, bytes) else b""


def as_count(result: int | bytes) -> int:
    assert isinstance(result, int)
    return result


def broken(error: OSError) -> trio.BrokenResourceError:
    """The error of a system call as trio's streams report it."""
    exception = trio.BrokenResourceError(f"the connection broke: {error.strerror}")
    exception.__cause__ = error
    return exception


def _peer_name(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return f"fd {sock.fileno()}"
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return f"fd {sock.fileno()}"
