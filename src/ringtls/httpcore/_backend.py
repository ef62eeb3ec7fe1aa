"""Connections for httpcore's pools.

Rules:

1. A pool must see that an idle connection has ended. The ring reads what comes, so a poll of the
   socket says nothing; ``input_pending`` does. In TLS in TLS the end may be in either layer.
2. A pool looks at HTTP/1.1 only, and some time before the request is sent. So a connection looks
   again when a request begins; if it has ended, nothing is sent, and the pool is told to take
   another one. In HTTP/2 a server may have said more than that: this is taken in, and kept for
   httpcore, which sees to GOAWAY. And httpcore tells all requests of a connection what ``write``
   raised, also one whose answer has come and is being taken. So a pool's connection looks by
   ``has_ended`` before httpcore has the request; then this one itself looks no more.
   A look never meets a read: one task receives at a time, and while one waits for what
   comes, there is nothing to look at.
3. A connection ends with the trio run that it was made in, a pool need not. So a request of a later
   run takes another one, whatever was on its way: nobody waits for that any more.
4. A server may end an idle connection while a request is on its way. If that may be sent again
   (``_requests``), the pool is told so. In HTTP/2 httpcore tells all requests that are inside of
   the connection, also one that was answered already, ahead of its body say. So that is done only
   if a pool's connection counts those that may not be sent twice, and none is inside. What httpcore
   itself closes, amid a request, is not for that: a pool that was closed would open another one.
5. A server of HTTP/2 may answer a request before it has the body, and reset its stream behind the
   answer (RFC 9113, section 8.1). If httpcore reads the reset before it has sent the body, it
   raises, in spite of the answer. It reads no further than who waits for an answer needs; and if a
   read is of one frame, others send their bodies meanwhile. So what has come with a reset in it is
   handed over frame by frame. (trio's SSLStream gives one record a read, which often is a frame.)
"""

from __future__ import annotations

import math
import ssl
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

import httpcore
import trio

from .._drivers.trio import TrioDriver
from .._errors import RingUnavailableError
from .._highlevel import open_tcp_stream, open_unix_socket
from .._streams.socket import SocketStream
from .._streams.tls import TlsStream
from ._requests import Requests, requests_of

if TYPE_CHECKING:
    from httpcore import SOCKET_OPTION

__all__ = ["Inside", "RingBackend", "Stream"]

RECEIVE_SIZE = 65536

#: Bytes that are taken in before a request; more than an idle connection's server has to say.
MOST_AHEAD = 4 * RECEIVE_SIZE


class RingBackend(httpcore.AsyncNetworkBackend):
    """What opens connections for httpcore's pools: their ``network_backend``."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore.AsyncNetworkBackend. If this is cancelled there is no connection.

        Raises:
          httpcore.ConnectTimeout: it took more than ``timeout`` seconds.
          httpcore.ConnectError: no address of the host could be connected to.
          RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
          RuntimeError: not called from inside a trio run.
        """
        TrioDriver.current()
        with _mapped(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            stream = await open_tcp_stream(host, port, local_address=local_address)
            return await _prepared(stream, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore.AsyncNetworkBackend. If this is cancelled there is no connection.

        Raises:
          httpcore.ConnectTimeout: it took more than ``timeout`` seconds.
          httpcore.ConnectError: ``path`` could not be connected to.
          RingUnavailableError, RuntimeError: as for ``connect_tcp``.
        """
        TrioDriver.current()
        with _mapped(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            return await _prepared(await open_unix_socket(path), socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds, as trio.sleep does."""
        await trio.sleep(seconds)


async def _prepared(
    stream: SocketStream, options: Iterable[SOCKET_OPTION] | None
) -> httpcore.AsyncNetworkStream:
    try:
        for option in options or ():
            stream.setsockopt(*option)
    except BaseException:
        await stream.aclose()
        raise
    return Stream(stream)


@dataclass
class Inside:
    """Counts the requests in a connection of HTTP/2 whose answer httpcore has not handed over."""

    once_only: int = 0  #: those that may not be sent twice


class Stream(httpcore.AsyncNetworkStream):
    """A connection: the socket's stream, and the layers of TLS on it."""

    def __init__(self, below: SocketStream, *tls: TlsStream[Any]) -> None:
        self._below = below
        self._tls = tls
        self._stream: SocketStream | TlsStream[Any] = tls[-1] if tls else below
        self._requests: Requests | None = None  # before HTTP begins
        self._run = trio.lowlevel.current_trio_token()
        self.inside: Inside | None = None  # where HTTP/2 is spoken, and somebody counts
        self._is_closed = False  # by httpcore
        self._looking = trio.Lock()
        self._receiving = trio.Lock()
        self._ahead: deque[bytes] = deque()  # pieces that were taken in, and not asked for yet

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with _mapped(timeout, httpcore.ReadTimeout, httpcore.ReadError):
                await _acquire(self._receiving)
                try:
                    if self._ahead:
                        await trio.lowlevel.checkpoint()
                    elif data := await self._stream.receive_some(max_bytes):
                        self._keep(data)
                    data = self._next_piece(max_bytes)
                finally:
                    self._receiving.release()
        except httpcore.ReadError as error:
            await self._send_again(error)
            raise
        if not data:
            await self._send_again()
        return data

    def _keep(self, data: bytes) -> None:
        """For the next read."""
        self._ahead += [data] if self._requests is None else self._requests.received(data)

    def _next_piece(self, max_bytes: int) -> bytes:
        """Rule 5. Nothing if there is none."""
        if not self._ahead:
            return b""
        piece = self._ahead.popleft()
        if len(piece) > max_bytes:
            self._ahead.appendleft(piece[max_bytes:])
        return piece[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._requests is None:
            self._requests = requests_of(buffer)
        try:
            with _mapped(timeout, httpcore.WriteTimeout, httpcore.WriteError):
                if (requests := self._requests) is not None:
                    if requests.begins(buffer) and await self._is_gone(requests):
                        await self._give_up()
                    requests.sent(buffer)
                await self._stream.send_all(buffer)
        except httpcore.WriteError as error:
            await self._send_again(error)
            raise

    async def _send_again(self, error: Exception | None = None) -> None:
        """Rule 4: have that done, if it may be."""
        requests = self._requests
        if self._is_closed or requests is None or not requests.may_be_sent_again:
            return
        if not requests.are_at_once or (self.inside is not None and not self.inside.once_only):
            await self._give_up(error)

    async def _give_up(self, error: Exception | None = None) -> NoReturn:
        """Have the pool take another connection."""
        await self._stream.aclose()
        raise httpcore.ConnectionNotAvailable from error

    async def _is_gone(self, requests: Requests) -> bool:
        """Rules 2 and 3."""
        if self._run is not trio.lowlevel.current_trio_token():
            return True
        if not requests.may_go_elsewhere:
            return False
        if requests.are_at_once:
            return self.inside is None and await self._look()
        return self._is_readable()

    async def has_ended(self) -> bool:
        """Rule 2, for a caller with a request of HTTP/2 that httpcore does not know of yet."""
        if self._requests is None:
            return False
        await _acquire(self._looking)
        try:
            return await self._look()
        finally:
            self._looking.release()

    async def _look(self) -> bool:
        try:
            self._receiving.acquire_nowait()
        except trio.WouldBlock:
            return False
        try:
            return await self._take_in()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True
        finally:
            self._receiving.release()

    async def _take_in(self) -> bool:
        """Take in what has come, without waiting for more. True at the end."""
        while self._is_readable() and sum(map(len, self._ahead)) < MOST_AHEAD:
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time()
                if not (data := await self._stream.receive_some(RECEIVE_SIZE)):
                    return True
                self._keep(data)
            if scope.cancelled_caught:  # it is for TLS alone
                break
        return False

    async def aclose(self) -> None:
        self._is_closed = True
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = self._stream
        try:
            with _mapped(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
                stream = TlsStream(
                    stream, ssl_context, server_hostname=server_hostname, https_compatible=True
                )
                await stream.do_handshake()
        except BaseException:
            await stream.aclose()
            raise
        return Stream(self._below, *self._tls, stream)

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._tls[-1].ssl_object if self._tls else None
            case "socket":
                return self._below.socket
            case "client_addr":
                return self._below.socket.getsockname()
            case "server_addr":
                return self._below.socket.getpeername()
            case "is_readable":
                return self._is_readable()
        return None

    def _is_readable(self) -> bool:
        """Rule 1."""
        try:
            return any(map(attrgetter("input_pending"), self._tls or (self._below,)))
        except trio.ClosedResourceError:
            return True


async def _acquire(lock: trio.Lock) -> None:
    """Without a checkpoint where nobody has it."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()


@contextmanager
def _mapped(
    timeout: float | None,
    too_slow: type[httpcore.TimeoutException],
    failed: type[httpcore.NetworkError],
) -> Iterator[None]:
    """Raise httpcore's exceptions for trio's, after ``timeout`` seconds, too."""
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except trio.TooSlowError as error:
        raise too_slow(f"not done within {timeout:g} s") from error
    except RingUnavailableError:
        raise
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise failed(str(error)) from error
