"""SocketStream: trio's interface over a socket on the ring.

A KeyboardInterrupt comes out where the task would wait: between making an operation and waiting
for it, it would lose the operation's result.
"""

from __future__ import annotations

import errno
import operator
import select
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

import trio
from trio.lowlevel import enable_ki_protection

from .._drivers.trio import TrioDriver
from .._transports.base import RECEIVE_SIZE, broken
from .._transports.owned_socket import OwnedSocket
from .._transports.ring import RingTransport, as_count
from .closing import Closing
from .conflict import ConflictDetector
from .operation import Operation, check_run
from .uncopyable import Uncopyable

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from .._engine.request import Request
    from .._interfaces import Driver

    T = TypeVar("T")

__all__ = ["SocketStream", "check_socket", "checked_max_bytes", "set_nodelay", "writable_bytes"]


def check_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Raise an error for a socket that can't be taken over."""
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("an SSLSocket is a TLS connection already: unwrap() it first")
    if not isinstance(sock, (socket.socket, trio.socket.SocketType)):
        raise TypeError(f"expected a socket of the stdlib or of trio, not {sock!r}")
    if isinstance(sock, OwnedSocket) and sock.is_owned:
        raise ValueError("this socket belongs to another stream or listener of ringtls")
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, "this socket is closed, or was taken over before")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("expected a SOCK_STREAM socket")


def set_nodelay(sock: socket.socket) -> None:
    with suppress(OSError):  # it is not TCP
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _end_soon(closing: Closing, sock: OwnedSocket) -> None:
    """Somebody has closed the socket of a stream."""
    driver = closing.transport.driver
    if driver.is_forked:
        sock.close_descriptor()  # the parent has its own
        return
    with suppress(trio.RunFinishedError):  # which ends it itself
        driver.call_soon(closing.start_unawaited)


@final
class SocketStream(Uncopyable, trio.abc.HalfCloseableStream):
    """A connected socket whose I/O is done by the ring.

    Like trio.SocketStream, with TCP_NODELAY set. The connection belongs to the stream from now on:
    the caller's object is left without it, as if closed (as SSLContext.wrap_socket leaves it), and
    closing that object does nothing. A stream belongs to the trio run that made it: in another
    thread, or in a forked child, a call that sends, receives or ends is a RuntimeError, and nothing
    has happened.

    Args:
      sock: a connected stdlib or trio stream socket.

    Raises:
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left; the
        text says what to change.
      TypeError, ValueError: it is not a stream socket, or belongs to another stream.
      OSError: of errno EBADF: it is closed. In all these cases it stays the caller's.
      RuntimeError: called outside of ``trio.run``.
    """

    _is_owner = False

    @enable_ki_protection
    def __init__(self, sock: socket.socket | trio.socket.SocketType) -> None:
        self._take_over(TrioDriver.current(), sock)

    @classmethod
    def _driven_by(cls, driver: Driver, sock: socket.socket) -> SocketStream:
        """A stream whose calls wait as ``driver`` does."""
        stream = cls.__new__(cls)
        stream._take_over(driver, sock)
        return stream

    @classmethod
    def _of_own(cls, driver: Driver, sock: OwnedSocket) -> SocketStream:
        """The same for a blocking socket that nobody else has seen."""
        stream = cls.__new__(cls)
        stream._begin(driver, sock)
        return stream

    def _take_over(self, driver: Driver, sock: socket.socket | trio.socket.SocketType) -> None:
        check_socket(sock)
        driver.ring  # noqa: B018  if there is none, the socket stays the caller's
        taken = OwnedSocket.taken_from(sock)
        set_nodelay(taken)
        self._begin(driver, taken)

    def _begin(self, driver: Driver, sock: OwnedSocket) -> None:
        self._transport = RingTransport(driver, driver.ring, sock)
        self._closing = Closing(self._transport)
        sock.give_to(partial(_end_soon, self._closing, sock))
        self._sending = ConflictDetector("another task is sending on this SocketStream")
        self._receiving = ConflictDetector("another task is receiving from this SocketStream")
        self._sent_eof = False
        self._is_owner = True

    @property
    def socket(self) -> socket.socket:
        """The socket, for options and addresses.

        ``close()`` on it begins the stream's orderly end, in the background: with close_notify if
        there is a TlsStream above. ``detach()`` is refused, as is a timeout: ``dup()`` gives a
        socket of your own. What is sent or received with it goes past the stream, and past TLS;
        it waits for the peer unless MSG_DONTWAIT is given. Never close its number with
        os.close(): that can't be noticed, and what is sent next may go to another connection.
        """
        return self._transport.socket

    def setsockopt(
        self, level: int, option: int, value: int | Buffer | None, length: int | None = None
    ) -> None:
        """See socket.socket.setsockopt; ``length`` goes with a ``value`` of None."""
        if length is None:
            self.socket.setsockopt(level, option, value)  # type: ignore[arg-type]
        else:
            self.socket.setsockopt(level, option, value, length)  # type: ignore[arg-type]

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See socket.socket.getsockopt."""
        if buffersize:
            return self.socket.getsockopt(level, option, buffersize)
        return self.socket.getsockopt(level, option)

    @enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``.

        It is sent from the caller's memory, without a copy, and can't be resized meanwhile.
        If this is cancelled, some part of it, from its start, has been sent. ``aclose`` ends the
        connection in order behind that, as trio's does: only ``close_unclean`` tells the peer that
        something is missing.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
          trio.BusyResourceError: a task, or an operation, is sending.
        """
        with self._sending:
            self._check_sendable()
            left = memoryview(data).cast("B")
            try:
                if not left:
                    await self._transport.driver.checkpoint()
                while True:
                    if not left:
                        break
                    sent = await self._transport.send(left)
                    left = left[sent:]
            finally:
                left.release()  # an error's traceback must not keep the caller's memory exported

    @enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room for more (POLLOUT of poll(2)). See trio.abc.SendStream.

        Nothing has happened if this is cancelled.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
          trio.BusyResourceError: a task, or an operation, is sending.
        """
        with self._sending:
            self._check_sendable()
            await self._transport.wait_writable()

    @enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes (by default 64 KiB); b"" at the end.

        If this is cancelled, nothing was received.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, before or during the call.
          trio.BusyResourceError: a task, or an operation, is receiving.
        """
        max_bytes = checked_max_bytes(max_bytes)
        with self._receiving:
            return await self._transport.receive_bytes(max_bytes)

    @enable_ki_protection
    async def peek(self, max_bytes: int) -> bytes:
        """Look at what the next receive will return, without taking it.

        Waits for the first byte, or the end, and for no more: what has not come yet is not waited
        for, and asking again gives the same at once. A caller that needs more than has come calls
        ``receive_some``, and passes that on as ``TlsStream(..., initial_input=...)``.

        All stays unread, also if this is cancelled.

        Returns:
          Between 1 and ``max_bytes`` bytes (64 KiB at most); b"" at the end.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, before or during the call.
          trio.BusyResourceError: a task, or an operation, is receiving.
        """
        max_bytes = min(checked_max_bytes(max_bytes), RECEIVE_SIZE)
        with self._receiving:
            return await self._transport.peek(max_bytes)

    @property
    def input_pending(self) -> bool:
        """True if a receive would return at once: with data, the end, or an error. Takes nothing.

        Raises:
          trio.ClosedResourceError: the stream was closed.
        """
        self._transport.driver.check_caller()
        self._transport.check_open()
        look = select.poll()
        look.register(self.socket, select.POLLIN)
        return bool(look.poll(0))

    @enable_ki_protection
    async def receive_into(self, buffer: Buffer, nbytes: int | None = None) -> int:
        """Receive into the caller's memory, which the kernel writes to without a copy.

        The memory can't be resized, or unmapped, until the kernel is done with it, whatever
        becomes of this call. If this is cancelled, nothing was received.

        Args:
          buffer: a bytearray, memoryview, mmap, array or the like; contiguous and writable.
          nbytes: how many bytes to receive at most, by default as many as fit. No more than
            1 GiB is received at once.

        Returns:
          The number of bytes received, at the start of ``buffer``; 0 at the end.

        Raises:
          TypeError, ValueError: the buffer can't be received into, or has no room.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, before or during the call.
          trio.BusyResourceError: a task, or an operation, is receiving.
        """
        with self._receiving, writable_bytes(buffer, nbytes) as memory:
            return await self._transport.receive_into(memory)

    # Operations

    @enable_ki_protection
    def start_send(self, data: bytes | bytearray | memoryview) -> Operation[int]:
        """Start to send ``data``, and return at once.

        It is sent from the caller's memory, without a copy, and can't be resized meanwhile. Until
        the kernel is done, nothing else can be sent. ``aclose`` lets it complete, in the
        background.

        Returns:
          An operation whose result is the number of bytes sent: all, but no more than 1 GiB,
          unless it was cancelled.

        Raises:
          trio.BusyResourceError: a task, or another operation, is sending.
          trio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
          RuntimeError: called outside the trio run that made the stream.
        """
        check_run(self._transport.driver)
        with self._sending:
            self._check_sendable()
            request = self._transport.start_send(memoryview(data).cast("B"))
            return self._started(request, self._sending, as_count)

    @enable_ki_protection
    def start_receive(self, max_bytes: int | None = None) -> Operation[bytes]:
        """Start to receive, and return at once.

        Until the kernel is done, nothing else can be received.

        Returns:
          An operation whose result is between 1 and ``max_bytes`` bytes (by default 64 KiB), or
          b"" at the end.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          trio.BusyResourceError: a task, or another operation, is receiving.
          trio.ClosedResourceError: the stream was closed.
          RuntimeError: called outside the trio run that made the stream.
        """
        max_bytes = checked_max_bytes(max_bytes)
        check_run(self._transport.driver)
        with self._receiving:
            request = self._transport.start_receive(max_bytes)
            return self._started(request, self._receiving, self._transport.as_input)

    def _started(
        self, request: Request, direction: ConflictDetector, convert: Callable[[int | bytes], T]
    ) -> Operation[T]:
        direction.hold(request)
        transport = self._transport
        return Operation(transport.driver, request, convert=convert, check=transport.check_error)

    @enable_ki_protection
    async def send_eof(self) -> None:
        """Send FIN. Receiving goes on; called again, this does nothing.

        If this is cancelled, FIN was not sent.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed.
          trio.BusyResourceError: a task, or an operation, is sending.
        """
        with self._sending:
            self._transport.driver.check_caller()
            await self._transport.driver.checkpoint()
            self._transport.check_open()
            if self._sent_eof:
                return
            try:
                self._transport.shut_output_down()
            except OSError as error:
                raise broken(error) from error
            self._sent_eof = True

    @enable_ki_protection
    async def aclose(self) -> None:
        """Send FIN and close. The ring reads what the peer still sends, and throws it away.

        Does not wait for the peer. The end goes on whether or not this is cancelled. What
        ``start_send`` has begun is sent before FIN; if that takes more than 5 seconds, the
        connection is reset.
        """
        self._closing.start()
        await self._transport.driver.checkpoint()

    @enable_ki_protection
    def close_unclean(self) -> None:
        """Reset the connection at once. Does not wait.

        The peer sees an error, and may lose what it has not read yet.
        """
        self._closing.abort()

    def reset_if_killed(self) -> None:
        """Have the peer see a reset, and not an end, if this process is killed.

        A kernel that closes a killed process' sockets sends FIN, which is an end where there is no
        TLS. This sets SO_LINGER (socket(7)) until the stream's own end.
        """
        self._transport.driver.check_caller()
        self._transport.reset_if_killed()

    def _release_to_tls(self) -> tuple[RingTransport, Closing]:
        """Hand the connection to a TLS stream, which sees to its end from now on."""
        with self._sending, self._receiving:
            self._check_sendable()
        if not self._is_owner:
            raise ValueError("this stream is below another TlsStream already")
        self._is_owner = False
        return self._transport, self._closing

    def _reclaim(self) -> None:
        """The connection is no longer TLS: it ends as a socket does, and TLS' end knows no more of
        it."""
        before, sock = self._closing, self._transport.socket
        before.detach()
        self._closing = Closing(self._transport)
        self._closing.succeed(before)
        sock.give_to(partial(_end_soon, self._closing, sock))
        self._is_owner = True

    def _check_sendable(self) -> None:
        self._transport.driver.check_caller()
        self._transport.check_open()
        if self._sent_eof:
            raise trio.ClosedResourceError("can't send after send_eof()")

    def __del__(self) -> None:
        if self._is_owner:
            self._closing.drop()


def writable_bytes(buffer: Buffer, nbytes: int | None) -> memoryview:
    """The first ``nbytes`` bytes of memory to receive into; None means all.

    Raises:
      TypeError, ValueError: it can't be received into, or has no room.
    """
    try:
        memory = memoryview(buffer).cast("B")
    except TypeError as error:
        raise TypeError(f"can receive only into contiguous memory: {error}") from None
    with memory:
        if memory.readonly:
            raise TypeError(f"can receive only into writable memory, not {type(buffer).__name__}")
        if not memory:
            raise ValueError("can't receive into an empty buffer")
        size = len(memory) if nbytes is None else operator.index(nbytes)
        if not 1 <= size <= len(memory):
            raise ValueError(f"nbytes must be between 1 and the buffer's {len(memory)} bytes")
        return memory[:size]


def checked_max_bytes(max_bytes: int | None) -> int:
    """What trio's streams accept as ``max_bytes``.

    Raises:
      TypeError, ValueError: it is not a positive integer.
    """
    if max_bytes is None:
        return RECEIVE_SIZE
    max_bytes = operator.index(max_bytes)
    if max_bytes < 1:
        raise ValueError("max_bytes must be >= 1")
    return max_bytes
