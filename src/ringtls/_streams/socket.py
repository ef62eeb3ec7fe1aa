"""SocketStream and SocketListener: trio's interfaces over sockets on the ring.

A KeyboardInterrupt comes out where the task would wait: between making an operation and waiting
for it, it would lose the operation's result.
"""

from __future__ import annotations

import errno
import operator
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, final

import trio
from trio.lowlevel import enable_ki_protection

from .._drivers.trio import TrioDriver
from .._engine.handle import Handle
from .._engine.ring import close_now
from .._transports.base import RECEIVE_SIZE, broken
from .._transports.ring import RingTransport, as_bytes, as_count
from .closing import Closing
from .conflict import ConflictDetector
from .operation import Operation, check_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from .._engine.request import Request
    from .._interfaces import Driver

    T = TypeVar("T")

__all__ = ["SocketListener", "SocketStream", "checked_max_bytes", "writable_bytes"]

#: What accept(2) may answer because of one connection, and not of the listener (its man page
#: asks to treat these as "try again").
_CONNECTION_ERRORS = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
    errno.ETIMEDOUT,
}


def _take_over(sock: socket.socket | trio.socket.SocketType) -> socket.socket:
    """The stdlib socket behind a stdlib or trio socket, which must not be used any more.

    It is made blocking, because io_uring answers EAGAIN for a non-blocking one instead of
    waiting.
    """
    if isinstance(sock, trio.socket.SocketType):
        family, type_, proto = sock.family, sock.type, sock.proto
        sock = socket.socket(family, type_, proto, fileno=sock.detach())
    if not isinstance(sock, socket.socket):
        raise TypeError(f"expected a socket of the stdlib or of trio, not {sock!r}")
    sock.setblocking(True)
    return sock


def _set_nodelay(sock: socket.socket) -> None:
    with suppress(OSError):  # it is not TCP
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _check_stream_type(sock: socket.socket | trio.socket.SocketType) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("expected a SOCK_STREAM socket")


@final
class SocketStream(trio.abc.HalfCloseableStream):
    """A connected socket whose I/O is done by the ring.

    Like trio.SocketStream, with TCP_NODELAY set. The socket belongs to the stream from now on.

    Args:
      sock: a connected stdlib or trio stream socket.

    Raises:
      RingUnavailableError: there is no io_uring here; the text says what to change.

    Attributes:
      socket: the stdlib socket, for options and addresses. Do not send or receive with it.
    """

    _is_owner = False

    @enable_ki_protection
    def __init__(self, sock: socket.socket | trio.socket.SocketType) -> None:
        self._take_over(TrioDriver.current(), sock)

    @classmethod
    def driven_by(cls, driver: Driver, sock: socket.socket) -> SocketStream:
        """A stream whose calls wait as ``driver`` does."""
        stream = cls.__new__(cls)
        stream._take_over(driver, sock)
        return stream

    @classmethod
    def accepted(cls, driver: Driver, sock: socket.socket) -> SocketStream:
        """The same for a blocking socket that nobody else has seen."""
        stream = cls.__new__(cls)
        stream._begin(driver, sock)
        return stream

    def _take_over(self, driver: Driver, sock: socket.socket | trio.socket.SocketType) -> None:
        _check_stream_type(sock)
        driver.ring  # noqa: B018  if there is none, the socket stays the caller's
        sock = _take_over(sock)
        _set_nodelay(sock)
        self._begin(driver, sock)

    def _begin(self, driver: Driver, sock: socket.socket) -> None:
        self._transport = RingTransport(driver, driver.ring, sock)
        self._closing = Closing(self._transport)
        self._sending = ConflictDetector("another task is sending on this SocketStream")
        self._receiving = ConflictDetector("another task is receiving from this SocketStream")
        self._sent_eof = False
        self._is_owner = True

    @property
    def socket(self) -> socket.socket:
        return self._transport.socket

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See socket.socket.setsockopt."""
        self.socket.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See socket.socket.getsockopt."""
        if buffersize:
            return self.socket.getsockopt(level, option, buffersize)
        return self.socket.getsockopt(level, option)

    @enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``.

        It is sent from the caller's memory, without a copy, and can't be resized meanwhile.
        If this is cancelled, some part of it, from its start, has been sent.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError
        """
        with self._sending:
            self._check_sendable()
            left = memoryview(data).cast("B")
            if not left:
                await self._transport.driver.checkpoint()
            while left:
                sent = await self._transport.send(left)
                left = left[sent:]

    @enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        with self._sending:
            self._check_sendable()
            await self._transport.wait_writable()

    @enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes (by default 64 KiB); b"" at the end.

        If this is cancelled, nothing was received.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError
        """
        max_bytes = checked_max_bytes(max_bytes)
        with self._receiving:
            return await self._transport.receive_bytes(max_bytes)

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
          trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError
        """
        with self._receiving:
            return await self._transport.receive_into(writable_bytes(buffer, nbytes))

    # Operations

    @enable_ki_protection
    def start_send(self, data: bytes | bytearray | memoryview) -> Operation[int]:
        """Start to send ``data``, and return at once.

        It is sent from the caller's memory, without a copy, and can't be resized meanwhile. Until
        the kernel is done, nothing else can be sent.

        Returns:
          An operation whose result is the number of bytes sent: all, but no more than 1 GiB,
          unless it was cancelled.

        Raises:
          trio.BusyResourceError: a task, or another operation, is sending.
          trio.ClosedResourceError
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
          trio.BusyResourceError: a task, or another operation, is receiving.
          trio.ClosedResourceError
          RuntimeError: called outside the trio run that made the stream.
        """
        max_bytes = checked_max_bytes(max_bytes)
        check_run(self._transport.driver)
        with self._receiving:
            request = self._transport.start_receive(max_bytes)
            return self._started(request, self._receiving, as_bytes)

    def _started(
        self, request: Request, direction: ConflictDetector, convert: Callable[[int | bytes], T]
    ) -> Operation[T]:
        direction.hold(request)
        transport = self._transport
        return Operation(transport.driver, request, convert=convert, check=transport.check_error)

    @enable_ki_protection
    async def send_eof(self) -> None:
        """Send FIN. Receiving goes on."""
        with self._sending:
            await self._transport.driver.checkpoint()
            self._transport.check_open()
            self._transport.driver.check_caller()
            if self._sent_eof:
                return
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise broken(error) from error
            self._sent_eof = True

    @enable_ki_protection
    async def aclose(self) -> None:
        """Send FIN and close. The ring reads what the peer still sends, and throws it away."""
        self._closing.start()
        await self._transport.driver.checkpoint()

    def release_to_tls(self) -> tuple[RingTransport, Closing]:
        """Hand the connection to a TLS stream, which sees to its end from now on."""
        with self._sending, self._receiving:
            self._transport.check_open()
        if not self._is_owner:
            raise ValueError("this stream is below another TlsStream already")
        self._is_owner = False
        return self._transport, self._closing

    def reclaim(self) -> None:
        """The connection is no longer TLS: it ends as a socket does."""
        self._closing.attach_session(None, self._closing.timeout)
        self._is_owner = True

    def _check_sendable(self) -> None:
        self._transport.check_open()
        if self._sent_eof:
            raise trio.ClosedResourceError("can't send after send_eof()")

    def __del__(self) -> None:
        if self._is_owner:
            self._closing.drop()


@final
class SocketListener(trio.abc.Listener[SocketStream]):
    """A listening socket whose connections are accepted by the ring.

    Args:
      sock: a listening stdlib or trio stream socket.

    Raises:
      RingUnavailableError: there is no io_uring here; the text says what to change.

    Attributes:
      socket: the stdlib socket, for options and addresses.
    """

    def __init__(self, sock: socket.socket | trio.socket.SocketType) -> None:
        _check_stream_type(sock)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("SocketListener needs a listening socket")
        self._driver = TrioDriver.current()
        self._ring = self._driver.ring  # if there is none, the socket stays the caller's
        self.socket = _take_over(sock)
        _set_nodelay(self.socket)  # what is accepted inherits it
        self._kind = int(self.socket.family), int(self.socket.type), self.socket.proto

    @enable_ki_protection
    async def accept(self) -> SocketStream:
        """Accept one connection. Several tasks may do so at once.

        If this is cancelled, no connection was accepted.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          OSError: among others EMFILE and ENFILE, when no file descriptor is left.
        """
        listening = self.socket
        ring = self._ring
        while True:
            _check_listening(listening)
            try:
                fd = await self._driver.wait(Handle(ring, ring.accept(listening.fileno())))
            except OSError as error:
                if error.errno in _CONNECTION_ERRORS or listening.fileno() < 0:
                    continue
                raise
            return self._accepted(fd)

    @enable_ki_protection
    def start_accept(self) -> Operation[SocketStream]:
        """Start to accept one connection, and return at once. Several may be started.

        Returns:
          An operation whose result is the connection. It may fail with an OSError that concerns
          only the connection, as accept(2) says; ``accept()`` passes over these.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          RuntimeError: called outside the trio run that made the listener.
        """
        check_run(self._driver)
        listening = self.socket
        _check_listening(listening)
        return Operation(
            self._driver,
            self._ring.accept(listening.fileno()),
            convert=self._accepted,
            check=lambda error: _check_listening(listening),
        )

    def _accepted(self, fd: int | bytes) -> SocketStream:
        sock = socket.socket(*self._kind, fileno=as_count(fd))
        if sock.gettimeout() is not None:  # socket.setdefaulttimeout() was called
            sock.setblocking(True)
        return SocketStream.accepted(self._driver, sock)

    @enable_ki_protection
    async def aclose(self) -> None:
        """Stop listening. Tasks in ``accept`` wake with trio.ClosedResourceError."""
        if self.socket.fileno() >= 0:
            ring = self._ring
            request = ring.close_fd(
                self.socket.fileno(), discard_limit=0, deadline=time.monotonic()
            )
            fd = self.socket.detach()  # the ring closes it, after the last accept
            if not ring.release(request):
                close_now(fd)
        await trio.lowlevel.checkpoint()


def _check_listening(listening: socket.socket) -> None:
    if listening.fileno() < 0:
        raise trio.ClosedResourceError("this listener was closed")


def writable_bytes(buffer: Buffer, nbytes: int | None) -> memoryview:
    """The first ``nbytes`` bytes of memory to receive into; None means all.

    Raises:
      TypeError, ValueError: it can't be received into, or has no room.
    """
    try:
        memory = memoryview(buffer).cast("B")
    except TypeError as error:
        raise TypeError(f"can receive only into contiguous memory: {error}") from None
    if memory.readonly:
        raise TypeError(f"can receive only into writable memory, not {type(buffer).__name__}")
    if not memory:
        raise ValueError("can't receive into an empty buffer")
    if nbytes is None:
        return memory
    nbytes = operator.index(nbytes)
    if not 1 <= nbytes <= len(memory):
        raise ValueError(f"nbytes must be between 1 and the buffer's {len(memory)} bytes")
    return memory[:nbytes]


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
