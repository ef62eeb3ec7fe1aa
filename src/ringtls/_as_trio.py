"""ringtls' classes in trio's names, for code that asks."""

from __future__ import annotations

import trio

from ._streams.socket import SocketStream
from ._streams.socket_listener import SocketListener
from ._streams.tls import TlsStream
from ._streams.tls_listener import TlsListener

__all__ = ["register_as_trio"]


def register_as_trio() -> None:
    """Have ``isinstance(stream, trio.SSLStream)`` be true of a TlsStream, and so on.

    For code of others that asks for trio's classes where it means their interface, as WebSocket
    libraries do. From now on, in this process, SocketStream, TlsStream, SocketListener and
    TlsListener count as subclasses of trio.SocketStream, trio.SSLStream, trio.SocketListener and
    trio.SSLListener (abc.ABCMeta.register). Calling it again does nothing.
    """
    trio.SocketStream.register(SocketStream)
    trio.SSLStream.register(TlsStream)
    trio.SocketListener.register(SocketListener)
    trio.SSLListener.register(TlsListener)
