"""The seam between TLS and what carries its bytes.

A TlsStream talks to its transport through the Transport protocol, and a transport waits
through the Driver protocol. So TLS and closing are written once: a driver that suspends tasks
makes them asynchronous, one that blocks the thread makes them blocking.

RingTransport is the transport on an io_uring.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from ._operation import Operation
from ._outbox import Outbox
from ._ring import reset_connection

if TYPE_CHECKING:
    from ._closing import Closing
    from ._operation import Request, Sink
    from ._ring import Ring
    from ._statistics import Tally

__all__ = ["HIGH_WATER", "RECEIVE_SIZE", "Driver", "RingTransport", "Signal", "Transport", "broken"]

#: Bytes in the outbox from which on a sender waits.
HIGH_WATER = 128 * 1024

#: Bytes of input thrown away after our FIN before the socket is closed all the same.
DISCARD_LIMIT = 32 * 1024 * 1024

RECEIVE_SIZE = 65536

#: One send takes no more than this.
LARGEST_SEND = 1 << 30


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

    async def wait(self, operation: Operation) -> int | bytes:
        """Wait for an operation of the ring and take its result.

        If this is cancelled, the operation is cancelled too and its end awaited: the
        cancellation comes out only if the operation had no result of its own.
        """

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
    """What TLS needs of a byte stream. Only ``receive`` and ``wait_sent`` wait."""

    @property
    def driver(self) -> Driver: ...

    @property
    def name(self) -> str:
        """Who is at the other end, for log records and warnings."""

    async def receive(self, sink: Sink) -> int:
        """Pass the next bytes to ``sink``; returns their number, 0 at the end of input.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: it was closed while this waited.
        """

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

    The socket belongs to this object from now on; it is made blocking, because io_uring
    answers EAGAIN for a non-blocking one instead of waiting.
    """

    __slots__ = (
        "_close_request",
        "_operations",
        "_outbox",
        "_progress",
        "_ring",
        "closing",
        "driver",
        "name",
        "socket",
    )

    def __init__(self, driver: Driver, ring: Ring, sock: socket.socket) -> None:
        sock.setblocking(True)
        self.driver = driver
        self._ring = ring
        self.socket = sock
        self.closing = False
        self.name = _peer_name(sock)
        self._progress = driver.signal()
        self._outbox = Outbox(ring, sock.fileno(), driver.tally, self._progress.wake)
        self._close_request: Request | None = None
        self._operations: set[Operation] = set()

    # As the transport of a TLS stream

    async def receive(self, sink: Sink) -> int:
        received = await self._perform(self._ring.recv(self._fd(), RECEIVE_SIZE, sink=sink))
        assert isinstance(received, int)
        self.driver.tally.bytes_received += received
        return received

    def enqueue(self, data: bytes) -> None:
        self._outbox.add(data)

    def check_sendable(self) -> None:
        if self._outbox.error is not None:
            raise broken(self._outbox.error)

    async def wait_sent(self, *, below: int = HIGH_WATER) -> bool:
        waited = False
        self.check_open()
        while self._outbox.pending >= below:
            await self._progress.wait()
            waited = True
            self.check_open()
        self.check_sendable()
        return waited

    # As a stream of its own

    async def receive_bytes(self, max_bytes: int) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes; b"" at the end of input."""
        received = await self._perform(self._ring.recv(self._fd(), max_bytes))
        data = received if isinstance(received, bytes) else b""
        self.driver.tally.bytes_received += len(data)
        return data

    async def send(self, data: memoryview) -> int:
        """Send from the caller's memory; returns how much went out."""
        sent = await self._perform(self._ring.send(self._fd(), data[:LARGEST_SEND]))
        assert isinstance(sent, int)
        self.driver.tally.bytes_sent += sent
        return sent

    async def wait_writable(self) -> None:
        """Wait until a send would not block."""
        await self._perform(self._ring.poll_writable(self._fd()))

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
        else:
            self._outbox.finish(deadline, on_flushed)

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
        operation = Operation(self._ring, request)
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
