"""TlsListener: makes a TlsStream of each connection that a listener below it accepts."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Generic, final

import trio

from .closing import SHUTDOWN_TIMEOUT, checked_timeout
from .tls import StreamT, TlsStream
from .uncopyable import Uncopyable

if TYPE_CHECKING:
    import socket

__all__ = ["TlsListener"]


@final
class TlsListener(Uncopyable, trio.abc.Listener["TlsStream[StreamT]"], Generic[StreamT]):
    """Accepts TLS connections: trio.SSLListener for TlsStream.

    The handshake is made by the accepted stream, so a peer that dawdles holds up nobody else.

    Args:
      transport_listener: where the connections come from; also an attribute.
      ssl_context: as for TlsStream, like those that follow.

    Raises:
      TypeError, ValueError: ``shutdown_timeout`` is negative or not a number.
      ValueError: the context is one for clients.
    """

    def __init__(
        self,
        transport_listener: trio.abc.Listener[StreamT],
        ssl_context: ssl.SSLContext,
        *,
        https_compatible: bool = False,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        reset_on_error: bool = False,
    ) -> None:
        self._shutdown_timeout = checked_timeout(shutdown_timeout)
        if ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError(
                "the context is one for clients (PROTOCOL_TLS_CLIENT): one for servers is made by "
                "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
            )
        self.transport_listener = transport_listener
        self._ssl_context = ssl_context
        self._https_compatible = https_compatible
        self._reset_on_error = reset_on_error

    async def accept(self) -> TlsStream[StreamT]:
        """Accept a connection. Waits for no handshake.

        If this is cancelled, no connection was accepted.

        Raises:
          trio.ClosedResourceError: the listener was closed.
          OSError: among others EMFILE and ENFILE, when no file descriptor is left.
        """
        transport_stream = await self.transport_listener.accept()
        try:
            return self._encrypted(transport_stream)
        except BaseException:
            await trio.aclose_forcefully(transport_stream)
            raise

    def _encrypted(self, transport_stream: StreamT) -> TlsStream[StreamT]:
        return TlsStream(
            transport_stream,
            self._ssl_context,
            server_side=True,
            https_compatible=self._https_compatible,
            shutdown_timeout=self._shutdown_timeout,
            reset_on_error=self._reset_on_error,
        )

    @property
    def socket(self) -> socket.socket | trio.socket.SocketType:
        """The listening socket of ``transport_listener``, for addresses and options.

        Raises:
          AttributeError: that has none.
        """
        sock: socket.socket | trio.socket.SocketType
        sock = self.transport_listener.socket  # type: ignore[attr-defined]
        return sock

    @property
    def port(self) -> int:
        """The port where it listens.

        Raises:
          AttributeError: it listens at a path.
        """
        address = self.socket.getsockname()
        if not isinstance(address, tuple):
            raise AttributeError(f"a Unix socket has no port: it listens at {address!r}")
        port: int = address[1]
        return port

    async def aclose(self) -> None:
        """Close the listener below, even if this is cancelled; see SocketListener.aclose."""
        await self.transport_listener.aclose()
