"""The blocking streams: the asynchronous ones, driven by the thread that calls them."""

from __future__ import annotations

import math
import socket
import ssl
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, final

from .._drivers.blocking import BlockingDriver, complete, complete_into
from .._streams import relay as _relay
from .._streams import socket as _socket
from .._streams import tls as _tls
from .._streams.closing import SHUTDOWN_TIMEOUT, checked_timeout
from .._streams.hostnames import ascii_hostname
from .._streams.self_connection import refuse_itself
from .._streams.tls_info import TlsInfo
from .._streams.uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from .._drivers.blocking import Call
    from .._streams.closing import Closing
    from .._streams.relay_ends import RelayOutcome

__all__ = ["SocketStream", "TlsStream", "open_tls_over_tcp_stream", "relay"]

#: Seconds that the timeout of a socket can have: the kernel waits for an int of milliseconds.
LONGEST_OF_SOCKETS = 2_000_000.0


class _Stream(Uncopyable):
    """What both streams have in common."""

    _driver: BlockingDriver
    _stream: _socket.SocketStream | _tls.TlsStream[_socket.SocketStream]
    _closing: Closing
    _timeout: float | None = None

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may wait, or None; may be set at any time.

        Raises:
          TypeError, ValueError: when it is set: it is negative or not a number.
        """
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._timeout = None if seconds is None else checked_timeout(seconds)

    def _call(self) -> Call:
        return self._driver.call(self._timeout)

    @property
    def input_pending(self) -> bool:
        """True if a receive would return at once: see ringtls.SocketStream and ringtls.TlsStream.

        Raises:
          trio.ClosedResourceError: the stream was closed, or unwrapped.
        """
        with self._driver.call():
            return self._stream.input_pending

    def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Each stream has its own."""
        raise NotImplementedError

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        data = self.receive_some()
        if not data:
            raise StopIteration
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(after_error=exc_type is not None)

    def _end(self, *, after_error: bool) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> NoReturn:
        raise TypeError(f"use 'with' with a blocking {type(self).__name__}, not 'async with'")

    async def __aexit__(self, *exc_info: object) -> None:
        raise AssertionError("__aenter__ does not return")


@final
class SocketStream(_Stream):
    """A connected socket whose I/O is done by the ring of this thread, with TCP_NODELAY set.

    The connection belongs to the stream from now on, and the socket's timeout is the stream's: the
    caller's object is left without it, as if closed, and closing that object does nothing. A stream
    belongs to the thread that made it: in another one, or in a forked child, each call is a
    RuntimeError, and nothing has happened.

    Args:
      sock: a connected stream socket.

    Raises:
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left; the
        text says what to change.
      TypeError, ValueError: it is not a stream socket, or belongs to another stream.
      OSError: of errno EBADF: it is closed. In all these cases it stays the caller's.
      RuntimeError: gevent has monkey-patched this process.
    """

    _stream: _socket.SocketStream

    def __init__(self, sock: socket.socket) -> None:
        if not isinstance(sock, socket.socket):
            raise TypeError(f"a blocking SocketStream needs a socket.socket, not {sock!r}")
        self._driver = BlockingDriver.current()
        self._timeout = sock.gettimeout()
        with self._driver.call():
            self._stream = _socket.SocketStream._driven_by(self._driver, sock)
        self._closing = self._stream._closing

    @property
    def socket(self) -> socket.socket:
        """The socket, for options and addresses: see ringtls.SocketStream.socket.

        ``close()`` on it begins the stream's end, and does not wait: what can't be sent at once is
        sent during later calls in the stream's thread, or at that thread's end.
        """
        return self._stream.socket

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. If this is interrupted, some part from its start has been sent.

        Raises:
          TimeoutError: it took longer than ``timeout``.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
        """
        with self._call():
            complete(self._stream.send_all(data))

    def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes (by default 64 KiB); b"" at the end.

        If this is interrupted, what comes at that moment may be lost, as by socket.recv.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          TimeoutError: nothing was received.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed.
        """
        with self._call():
            return complete(self._stream.receive_some(max_bytes))

    def peek(self, max_bytes: int) -> bytes:
        """Look at what the next receive will return, without taking it: see ringtls.SocketStream.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          TimeoutError: nothing has come.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed.
        """
        with self._call():
            return complete(self._stream.peek(max_bytes))

    def receive_into(self, buffer: Buffer, nbytes: int | None = None) -> int:
        """Receive into the caller's memory: see ringtls.SocketStream.receive_into.

        If this is interrupted, what comes at that moment may be lost, as by socket.recv_into.

        Raises:
          TimeoutError: nothing was received.
          TypeError, ValueError: the buffer can't be received into, or has no room.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed.
        """
        with self._call():
            return complete(self._stream.receive_into(buffer, nbytes))

    def send_eof(self) -> None:
        """Send FIN. Receiving goes on; called again, this does nothing.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream was closed.
        """
        with self._call():
            complete(self._stream.send_eof())

    def close(self) -> None:
        """Send FIN and close; what the peer still sends is thrown away. Does not wait."""
        self._end(after_error=False)

    def close_unclean(self) -> None:
        """Reset the connection at once. Does not wait.

        The peer sees an error, and may lose what it has not read yet.
        """
        with self._driver.call():
            self._stream.close_unclean()

    def _end(self, *, after_error: bool) -> None:
        if self._closing.started:
            return
        with self._call():
            complete(self._stream.aclose())


@final
class TlsStream(TlsInfo, _Stream):
    """A TLS connection that always ends with close_notify: ringtls.TlsStream for plain threads.

    Like an ssl.SSLSocket, but for its end: leaving ``with stream``, or ``close()``, sends all
    that ``send_all`` accepted, close_notify and FIN, also when a KeyboardInterrupt flies. To break
    a connection off there is ``close_unclean()``. It belongs to the thread that made it, as its
    ``transport_stream`` does.

    Args:
      transport_stream: the connection; it belongs to this object from now on, and its timeout is
        also this object's.
      ssl_context: as for ringtls.TlsStream, like those that follow.

    Raises:
      TypeError, ValueError, ssl.SSLError: as for ringtls.TlsStream.
    """

    _stream: _tls.TlsStream[_socket.SocketStream]

    def __init__(
        self,
        transport_stream: SocketStream,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | bytes | None = None,
        server_side: bool = False,
        https_compatible: bool = False,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        reset_on_error: bool = False,
        initial_input: bytes | bytearray | memoryview = b"",
    ) -> None:
        if not isinstance(transport_stream, SocketStream):
            raise TypeError(
                f"a blocking TlsStream needs a blocking SocketStream, not {transport_stream!r}"
            )
        self._transport_stream = transport_stream
        self._driver = transport_stream._driver
        self._timeout = transport_stream.timeout
        with self._driver.call():
            self._stream = _tls.TlsStream(
                transport_stream._stream,
                ssl_context,
                server_hostname=server_hostname,
                server_side=server_side,
                https_compatible=https_compatible,
                shutdown_timeout=shutdown_timeout,
                reset_on_error=reset_on_error,
                initial_input=initial_input,
            )
        self._session, self._closing = self._stream._session, self._stream._closing

    def do_handshake(self) -> None:
        """Shake hands, if that has not happened yet. The other methods do it where needed.

        Raises:
          TimeoutError: call it again, and it goes on where it was.
          trio.BrokenResourceError: it failed; the cause is the ssl.SSLError.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        with self._call():
            complete(self._stream.do_handshake())
            complete(self._stream.wait_sent())

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, in order. Returns when the kernel has it.

        If this is interrupted, what was accepted is some part of ``data`` from its start (all or
        nothing, up to 256 KiB). That is sent during later calls in this thread, and before the
        connection ends.

        Raises:
          TimeoutError: it took longer than ``timeout``.
          trio.BrokenResourceError: a send, or TLS, has failed: nothing more can be sent.
          trio.ClosedResourceError: the stream was closed or unwrapped, or ``send_eof`` was called.
        """
        with self._call():
            complete(self._stream.send_all(data))
            complete(self._stream.wait_sent())

    def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes (by default 64 KiB); b"" after the peer's
        close_notify.

        If this is interrupted, nothing was received, and nothing is lost.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          TimeoutError: nothing was received, and nothing is lost.
          TruncationError: the connection ended without close_notify.
          trio.BrokenResourceError: the connection broke, or TLS failed.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        received: list[bytes] = []
        try:
            with self._call():
                complete_into(received, self._stream.receive_some(max_bytes))
        except BaseException:  # a signal's handler, at the end of the call
            if received and received[0]:
                self._session.put_back(received[0])
            raise
        return received[0]

    def receive_into(self, buffer: Buffer, nbytes: int | None = None) -> int:
        """Receive into the caller's memory: see ringtls.TlsStream.receive_into.

        If this is interrupted, nothing was received, and nothing is lost. What is in the memory
        then comes again.

        Raises:
          TimeoutError: nothing was received, and nothing is lost.
          TypeError, ValueError: the buffer can't be received into, or has no room.
          TruncationError: the connection ended without close_notify.
          trio.BrokenResourceError: the connection broke, or TLS failed.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        counts: list[int] = []
        try:
            with self._call():
                complete_into(counts, self._stream.receive_into(buffer, nbytes))
        except BaseException:
            if counts and counts[0]:
                self._session.put_back(bytes(memoryview(buffer).cast("B")[: counts[0]]))
            raise
        return counts[0]

    def wait_acknowledged(self) -> None:
        """Wait until the peer's TCP has acknowledged all that was sent: see ringtls.TlsStream.

        Raises:
          TimeoutError: it took longer than ``timeout``; call it again.
          trio.BrokenResourceError: a send, or TLS, has failed.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        with self._call():
            complete(self._stream.wait_acknowledged())

    def send_eof(self) -> None:
        """Send close_notify, and no FIN: the other direction goes on.

        Afterwards sending raises trio.ClosedResourceError.

        Raises:
          TimeoutError: close_notify is sent like what ``send_all`` accepted.
          trio.BrokenResourceError: a send, or TLS, has failed; or a renegotiation is under way.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        with self._call():
            complete(self._stream.send_eof())
            complete(self._stream.wait_sent())

    def unwrap(self) -> tuple[SocketStream, bytes]:
        """End TLS and keep the connection.

        Sends close_notify and waits for the peer's. Read to the end (b"") first if the peer may
        still be sending.

        Returns:
          The transport, and what came on it after the peer's close_notify.

        Raises:
          TimeoutError: it took longer than ``timeout``; called again, it goes on where it was.
          trio.BrokenResourceError: the connection broke, TLS failed, or the peer still sends data,
            which the next receive returns.
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        with self._call():
            _, trailing = complete(self._stream.unwrap())
            return self._transport_stream, trailing

    def close(self, *, shutdown_timeout: float | None = None) -> None:
        """Send what is accepted, close_notify and FIN; wait until the kernel has them.

        Does not wait for the peer, but for its TCP to take in what is unsent: at most
        ``shutdown_timeout`` seconds (by default the stream's own). After that the connection is
        reset. How it ended is ``close_outcome``; no error is raised for it.

        A KeyboardInterrupt comes out when that is done.

        Raises:
          TypeError, ValueError: ``shutdown_timeout`` is no number, or negative. No end has begun.
        """
        self._end(shutdown_timeout, after_error=False)

    def _end(self, timeout: float | None = None, *, after_error: bool) -> None:
        if self.close_outcome is not None:
            return
        with self._driver.call():
            complete(self._stream._end(timeout, after_error=after_error))

    def close_unclean(self) -> None:
        """Reset the connection at once, without close_notify. Does not wait.

        The peer sees an error, and may lose what it has not read yet.
        """
        with self._driver.call():
            self._stream.close_unclean()

    @property
    def transport_stream(self) -> SocketStream:
        """The stream below. None of its data methods may be used.

        Raises:
          trio.ClosedResourceError: this stream was unwrapped.
        """
        self._stream.transport_stream  # noqa: B018 raises if it was unwrapped
        return self._transport_stream


def open_tls_over_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    https_compatible: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    timeout: float | None = None,
) -> TlsStream:
    """Connect to a TLS server.

    The handshake, which checks that the certificate is valid for ``host``, is made by the first
    call on the stream, or by ``do_handshake()``. The host's addresses are tried one by one, as
    socket.create_connection does.

    Args:
      ssl_context: by default ssl.create_default_context().
      timeout: of the stream, and of the connection to each address.

    Raises:
      OSError: no address of the host could be connected to.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      ValueError: ``timeout`` is negative or not a number.
    """
    seconds = math.inf if timeout is None else checked_timeout(timeout)
    BlockingDriver.current()  # raises before there is anything to be closed
    context = ssl_context or ssl.create_default_context()
    address = ascii_hostname(host), port
    sock = socket.create_connection(address, min(seconds, LONGEST_OF_SOCKETS))
    refuse_itself(sock)
    stream = SocketStream(sock)
    stream.timeout = timeout
    try:
        return TlsStream(stream, context, server_hostname=host, https_compatible=https_compatible)
    except BaseException:
        stream.close()
        raise


def relay(
    a: SocketStream | TlsStream, b: SocketStream | TlsStream, *, idle_timeout: float | None = None
) -> RelayOutcome:
    """Pass on what each of two streams says to the other, and how it ends: see ringtls.relay.

    Both are closed when this returns or raises. Their timeouts have no effect on it.

    Raises:
      TypeError, ValueError: these can't be relayed. Nothing has happened to them.
      trio.ClosedResourceError: one is closed, or its ``send_eof`` was called; likewise.
      BaseException: what SIGINT's handler raised. Both connections were reset.
    """
    for stream in (a, b):
        if not isinstance(stream, SocketStream | TlsStream):
            raise TypeError(f"blocking.relay needs blocking streams, not {stream!r}")
    with a._driver.call():
        return complete(_relay.relay(a._stream, b._stream, idle_timeout=idle_timeout))
