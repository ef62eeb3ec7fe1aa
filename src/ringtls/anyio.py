"""The streams of ringtls as anyio's, on its trio backend.

    async with await ringtls.anyio.connect_tcp("example.org", 443, tls=True) as stream:
        await stream.send(b"...")
        print(await stream.receive(), stream.extra(TLSAttribute.cipher))

What holds for all of them:

- The methods, typed attributes and exceptions are anyio's. More of a stream, its
  ``farewell`` or ``close_unclean()``, is there as ``stream.extra(RingAttribute.stream)``.
- The end is ringtls' own: ``aclose()``, and with it ``anyio.aclose_forcefully()``, sends what was
  accepted, close_notify and FIN, under cancellation too. It does not wait for the peer's
  close_notify, as anyio's TLSStream does.
- With anyio's asyncio backend there is nothing that drives the ring: a RuntimeError says so.

It needs anyio: ``pip install 'ringtls[anyio]'``.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

try:
    import anyio
except ModuleNotFoundError as _error:
    if _error.name != "anyio":
        raise
    raise ModuleNotFoundError(
        "ringtls.anyio needs anyio: pip install 'ringtls[anyio]'", name="anyio"
    ) from _error
from anyio.abc import Listener, SocketAttribute
from anyio.streams.tls import TLSAttribute

from ._accepting import accept_forever
from ._highlevel import HAPPY_EYEBALLS_DELAY, open_tcp_stream
from ._streams import socket as _socket
from ._streams import socket_listener as _socket_listener
from ._streams import tls as _tls
from ._streams import tls_listener as _tls_listener
from ._streams.closing import checked_timeout
from ._streams.handshakes import is_silent
from ._streams.hostnames import ascii_hostname
from ._streams.self_connection import refuse_itself
from ._streams.trio_socket import StandIn

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from anyio.abc import TaskGroup

__all__ = ["ByteStream", "RingAttribute", "connect_tcp", "wrap_listener", "wrap_stream"]

_logger = logging.getLogger("ringtls")

#: Seconds that an accepted connection's handshake may take, as anyio's TLSListener has it.
HANDSHAKE_TIMEOUT = 30.0

AnyStream: TypeAlias = _socket.SocketStream | _tls.TlsStream[Any]


class RingAttribute(anyio.TypedAttributeSet):
    """What ringtls' own streams have besides anyio's attributes."""

    #: The ringtls.TlsStream, or ringtls.SocketStream.
    stream: AnyStream = anyio.typed_attribute()


@contextmanager
def _translated() -> Iterator[None]:
    """Raise anyio's exceptions for trio's."""
    try:
        yield
    except trio.ClosedResourceError as error:
        raise anyio.ClosedResourceError(*error.args) from error
    except trio.BrokenResourceError as error:
        raise anyio.BrokenResourceError(*error.args) from error
    except trio.BusyResourceError as error:
        raise anyio.BusyResourceError("using") from error


class ByteStream(anyio.abc.ByteStream):
    """A stream of ringtls with the methods of anyio's: what ``wrap_stream`` makes."""

    def __init__(self, stream: AnyStream) -> None:
        if not isinstance(stream, _socket.SocketStream | _tls.TlsStream):
            raise TypeError(f"expected a SocketStream or TlsStream of ringtls, not {stream!r}")
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes.

        If this is cancelled, nothing was received, and nothing is lost.

        Raises:
          anyio.EndOfStream: the peer has ended, by close_notify if there is TLS.
          anyio.BrokenResourceError: the connection broke, TLS failed, or it ended without
            close_notify; see the cause.
          anyio.ClosedResourceError: the stream was closed, before or during the call.
          anyio.BusyResourceError: another task is receiving.
        """
        with _translated():
            data = await self._stream.receive_some(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of ``item``: see ``send_all`` of the ringtls stream.

        If this is cancelled, some part of ``item`` from its start was sent, or will be.

        Raises:
          anyio.BrokenResourceError: the connection broke, or TLS failed.
          anyio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
          anyio.BusyResourceError: another task is sending.
        """
        with _translated():
            await self._stream.send_all(item)

    async def send_eof(self) -> None:
        """Send close_notify if there is TLS, else FIN. Receiving goes on.

        If this is cancelled, nothing was sent, and it can be called again.

        Raises:
          anyio.BrokenResourceError: the connection broke, TLS failed, or a renegotiation is under
            way.
          anyio.ClosedResourceError: the stream was closed.
          anyio.BusyResourceError: another task is sending.
        """
        with _translated():
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """End the connection: see ``aclose`` of the ringtls stream. Not a cancellation point of a
        TLS stream."""
        await self._stream.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._stream.__aexit__(exc_type, exc_val, exc_tb)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """anyio's SocketAttribute of the socket, its TLSAttribute, and RingAttribute. What only the
        handshake can tell is there after it."""
        return _attributes(self._stream)


def _attributes(stream: trio.abc.Stream) -> dict[Any, Callable[[], Any]]:
    """The attributes of a stream, and of those below it."""
    if isinstance(stream, _tls.TlsStream):
        return {
            **_attributes(stream.transport_stream),
            **_of_tls(stream),
            RingAttribute.stream: lambda: stream,
        }
    if isinstance(stream, _socket.SocketStream):
        return {**_of_socket(stream.socket), RingAttribute.stream: lambda: stream}
    if isinstance(stream, trio.SocketStream) and isinstance(stream.socket, StandIn):
        return _of_socket(stream.socket.real)
    return {}


def _of_tls(stream: _tls.TlsStream[Any]) -> dict[Any, Callable[[], Any]]:
    known: dict[Any, Callable[[], Any]] = {
        TLSAttribute.server_side: lambda: stream.server_side,
        TLSAttribute.ssl_object: lambda: stream.ssl_object,
        TLSAttribute.standard_compatible: lambda: not stream._session.https_compatible,
    }
    if not stream._session.handshake_done:
        return known
    return {
        **known,
        TLSAttribute.alpn_protocol: stream.selected_alpn_protocol,
        TLSAttribute.channel_binding_tls_unique: stream.get_channel_binding,
        TLSAttribute.cipher: stream.cipher,
        TLSAttribute.peer_certificate: stream.getpeercert,
        TLSAttribute.peer_certificate_binary: partial(stream.getpeercert, binary_form=True),
        TLSAttribute.shared_ciphers: lambda: (
            stream.shared_ciphers() if stream.server_side else None
        ),
        TLSAttribute.tls_version: stream.version,
    }


def _of_socket(sock: socket.socket) -> dict[Any, Callable[[], Any]]:
    has_ports = sock.family in (socket.AF_INET, socket.AF_INET6)

    def local() -> Any:
        return _address(sock.getsockname())

    def remote() -> Any:
        return _address(sock.getpeername())

    known: dict[Any, Callable[[], Any]] = {
        SocketAttribute.family: lambda: sock.family,
        SocketAttribute.local_address: local,
        SocketAttribute.raw_socket: lambda: sock,
    }
    if has_ports:
        known[SocketAttribute.local_port] = lambda: local()[1]
    try:
        sock.getpeername()
    except OSError:  # it listens, or is closed
        return known
    known[SocketAttribute.remote_address] = remote
    if has_ports:
        known[SocketAttribute.remote_port] = lambda: remote()[1]
    return known


def _address(address: Any) -> Any:
    """A socket's address as anyio has it: of IPv6 the host and the port."""
    return address[:2] if isinstance(address, tuple) else address


def wrap_stream(stream: AnyStream) -> ByteStream:
    """A ringtls stream as one of anyio's. It belongs to the result from now on.

    A TlsStream makes its handshake with the first call, or by its own ``do_handshake()``.

    Raises:
      TypeError: it is not a stream of ringtls.
    """
    return ByteStream(stream)


def wrap_listener(
    listener: _socket_listener.SocketListener | _tls_listener.TlsListener[Any],
    *,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> Listener[ByteStream]:
    """A ringtls listener as one of anyio's. It belongs to the result from now on.

    ``serve(handler)`` runs each handler in a task. With TLS that task first makes the handshake:
    what fails there is logged, closed, and never gets to the handler. The handler closes its
    stream; one that it loses is closed in the background, with a ResourceWarning.

    Args:
      handshake_timeout: seconds that a handshake may take.

    Raises:
      TypeError, ValueError: it is not a listener of ringtls, or ``handshake_timeout`` is negative
        or not a number. The listener stays the caller's.
    """
    return _Listener(listener, handshake_timeout)


class _Listener(Listener[ByteStream]):
    def __init__(self, listener: trio.abc.Listener[Any], handshake_timeout: float) -> None:
        if not isinstance(listener, _socket_listener.SocketListener | _tls_listener.TlsListener):
            raise TypeError(f"expected a listener of ringtls, not {listener!r}")
        self._listener = listener
        self._handshake_timeout = checked_timeout(handshake_timeout)

    async def serve(
        self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None
    ) -> None:
        async with AsyncExitStack() as stack:
            if task_group is None:
                task_group = await stack.enter_async_context(anyio.create_task_group())
            start_soon = task_group.start_soon

            def begin(stream: AnyStream) -> None:
                start_soon(self._handle, handler, stream)

            accept: Callable[[], Awaitable[AnyStream]] = self._listener.accept
            with _translated():
                await accept_forever(accept, begin)

    async def _handle(self, handler: Callable[[ByteStream], Any], stream: AnyStream) -> None:
        if isinstance(stream, _socket.SocketStream) or await self._shakes_hands(stream):
            await handler(ByteStream(stream))

    async def _shakes_hands(self, stream: _tls.TlsStream[Any]) -> bool:
        try:
            with trio.fail_after(self._handshake_timeout):
                await stream.do_handshake()
        except BaseException as error:
            await stream.aclose()
            if not isinstance(error, trio.BrokenResourceError | trio.TooSlowError):
                raise
            level = logging.DEBUG if is_silent(stream) else logging.INFO
            _logger.log(level, "a handshake failed: %s", str(error) or "it took too long")
            return False
        return True

    async def aclose(self) -> None:
        await self._listener.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        below = self._listener
        if isinstance(below, _socket_listener.SocketListener):
            return _of_socket(below.socket)
        compatible = not below._https_compatible
        known: dict[Any, Callable[[], Any]]
        known = {TLSAttribute.standard_compatible: lambda: compatible}
        if isinstance(below.transport_listener, _socket_listener.SocketListener):
            known.update(_of_socket(below.transport_listener.socket))
        return known


async def connect_tcp(
    remote_host: str | IPv4Address | IPv6Address,
    remote_port: int,
    *,
    local_host: str | IPv4Address | IPv6Address | None = None,
    local_port: int | None = None,
    tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    tls_standard_compatible: bool = True,
    tls_hostname: str | None = None,
    happy_eyeballs_delay: float = HAPPY_EYEBALLS_DELAY,
) -> ByteStream:
    """Connect to ``remote_host`` and ``remote_port``: anyio.connect_tcp on the ring.

    With ``tls``, ``ssl_context`` or ``tls_hostname`` the handshake is made, too. If this is
    cancelled there is no connection: what there was has been ended.

    Args:
      local_port: the port to connect from, of ``local_host``. anyio has it from 4.16 on; with an
        older one it is a TypeError.
      ssl_context: by default ssl.create_default_context().
      tls_standard_compatible: False takes an end without close_notify for an end; our own
        close_notify is sent all the same.
      tls_hostname: the name that the certificate must have, by default ``remote_host``.

    Raises:
      OSError: no address of the host could be connected to.
      ssl.SSLError: the handshake failed.
      anyio.BrokenResourceError: the connection broke, or ended, in the middle of it.
      RingUnavailableError: io_uring is forced and there is none here, or no descriptor is left.
      RuntimeError: anyio runs on another backend than trio.
    """
    if local_port is None:
        below = await open_tcp_stream(
            ascii_hostname(str(remote_host)).encode("ascii"),  # bytes: what is no name is not found
            remote_port,
            happy_eyeballs_delay=happy_eyeballs_delay,
            local_address=None if local_host is None else str(local_host),
        )
    else:  # trio has none
        theirs = await anyio.connect_tcp(
            remote_host,
            remote_port,
            local_host=local_host,
            local_port=local_port,
            happy_eyeballs_delay=happy_eyeballs_delay,
        )
        sock = theirs.extra(SocketAttribute.raw_socket)
        refuse_itself(sock)
        below = _socket.SocketStream(sock)
    if not (tls or ssl_context or tls_hostname):
        return ByteStream(below)
    try:
        stream = _tls.TlsStream(
            below,
            ssl_context or ssl.create_default_context(),
            server_hostname=tls_hostname or str(remote_host),
            https_compatible=not tls_standard_compatible,
        )
    except BaseException:
        await below.aclose()
        raise
    try:
        await stream.do_handshake()
    except BaseException as error:
        await stream.aclose()
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            raise cause from None
        with _translated():
            raise
    return ByteStream(stream)
