"""httpx and httpcore on ringtls' streams, in a trio run.

    async with httpx.AsyncClient(transport=ringtls.httpcore.transport()) as client:
        response = await client.get("https://example.org")

Rules:

1. A pool must see that an idle connection has ended. The ring reads what comes, so a poll of the
   socket says nothing; ``input_pending`` does. In TLS in TLS the end may be in either layer.
2. A server may end an idle connection while a request is on its way. If the connection was used
   before, and not a byte of an answer has come, the pool is told so and takes another one, but only
   for a request that may be sent twice: GET, HEAD or OPTIONS, without a body (RFC 9110, section
   9.2.2; RFC 9112, section 9.3.1).
3. As with httpcore's other backends, an end without close_notify is an end: HTTP itself tells a
   whole answer from a part, but for answers that only the connection's end delimits. Ours is
   close_notify all the same, when a download is cancelled, too.

It needs httpx: ``pip install 'ringtls[httpx]'``.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

try:
    import httpcore
    import httpx
except ModuleNotFoundError as _error:
    if _error.name not in ("httpcore", "httpx"):
        raise
    raise ModuleNotFoundError(
        f"ringtls.httpcore needs {_error.name}: pip install 'ringtls[httpx]'", name=_error.name
    ) from _error

from ._drivers.trio import TrioDriver
from ._errors import RingUnavailableError
from ._highlevel import open_tcp_stream, open_unix_socket
from ._streams.socket import SocketStream
from ._streams.tls import TlsStream

if TYPE_CHECKING:
    from httpcore import SOCKET_OPTION

__all__ = ["RingBackend", "transport"]

#: See rule 2.
MAY_BE_SENT_TWICE = (b"GET ", b"HEAD ", b"OPTIONS ")


def transport(**arguments: Any) -> httpx.AsyncHTTPTransport:
    """A transport on ringtls' streams, for ``httpx.AsyncClient``.

    Args:
      arguments: those of httpx.AsyncHTTPTransport: ``verify``, ``http2``, ``proxy``, ``uds``,
        ``limits`` and others.
    """
    made = httpx.AsyncHTTPTransport(**arguments)
    # httpx has no argument for it. Where these names are gone this raises AttributeError.
    assert isinstance(made._pool._network_backend, httpcore.AsyncNetworkBackend)
    made._pool._network_backend = RingBackend()
    return made


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
          RingUnavailableError: io_uring is forced, and there is none here.
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
        """See ``connect_tcp``."""
        TrioDriver.current()
        with _mapped(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            return await _prepared(await open_unix_socket(path), socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds."""
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
    return _Stream(stream)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection: the socket's stream, and the layers of TLS on it."""

    def __init__(self, below: SocketStream, *tls: TlsStream[Any]) -> None:
        self._below = below
        self._tls = tls
        self._stream: SocketStream | TlsStream[Any] = tls[-1] if tls else below
        self._was_used = False  # something has been read
        self._request: bytes | None = None  # what was sent since then; b"" if that was a body, too

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        request, self._request = self._request, None
        try:
            with _mapped(timeout, httpcore.ReadTimeout, httpcore.ReadError):
                data = await self._stream.receive_some(max_bytes)
        except httpcore.ReadError as error:
            if self._is_to_be_sent_again(request):
                raise httpcore.ConnectionNotAvailable from error
            raise
        if not data and self._is_to_be_sent_again(request):
            raise httpcore.ConnectionNotAvailable
        self._was_used = True
        return data

    def _is_to_be_sent_again(self, request: bytes | None) -> bool:
        """Rule 2."""
        return self._was_used and request is not None and request.startswith(MAY_BE_SENT_TWICE)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        self._request = buffer if self._request is None else b""
        with _mapped(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
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
        return _Stream(self._below, *self._tls, stream)

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
            return any(layer.input_pending for layer in self._tls or (self._below,))
        except trio.ClosedResourceError:
            return True


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
