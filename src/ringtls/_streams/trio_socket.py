"""A trio.SocketStream below TLS: while TLS uses the connection, it is on the ring.

``TlsStream(await trio.open_tcp_stream(...))`` is what one change of name makes of a program of
trio's. Over the adapter that would take more CPU than trio.SSLStream.

Rules:

1. A trio.SocketStream holds no data: what is not received is in the kernel. So the connection can
   change hands before TLS' first byte and after its last, in ``unwrap``, and nothing is lost.
2. The descriptor is taken out of trio's socket object, as SSLContext.wrap_socket takes it: who
   has that object can't close it behind our back. What still waits for it in trio wakes with
   trio.ClosedResourceError.
3. The stream stays the user's. Meanwhile a stand-in is its socket: options and addresses are the
   connection's, closing ends it as the TlsStream's ``aclose`` does. To send or receive is refused:
   that would take bytes out of the middle of TLS.
4. Only trio's own sockets are taken. Of another class, from a trio.abc.SocketFactory, there is
   more to know than its descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from .socket import SocketStream

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .._transports.ring import RingTransport
    from .closing import Closing

__all__ = ["StandIn", "can_be_taken", "check_unused", "give_back", "take"]


class StandIn(trio.socket.SocketType):
    """The socket of a trio.SocketStream whose connection a TlsStream uses (rule 3)."""

    def __init__(self, stream: SocketStream, closing: Closing) -> None:
        self._stream = stream
        self.closing = closing
        self._did_shutdown_write = False

    @property
    def real(self) -> socket.socket:
        return self._stream.socket

    @property
    def family(self) -> socket.AddressFamily:
        return self.real.family

    @property
    def type(self) -> socket.SocketKind:
        return self.real.type

    @property
    def proto(self) -> int:
        return self.real.proto

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802
        return self._did_shutdown_write

    def shutdown(self, flag: int) -> None:
        self.real.shutdown(flag)
        self._did_shutdown_write |= flag != socket.SHUT_RD

    def close(self) -> None:
        self.closing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.real!r}, used by a TlsStream>"


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self.real, name)(*args)


def _refuse(self: StandIn, *args: object, **kwargs: object) -> NoReturn:
    if self.closing.started:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as trio's, closed
    raise trio.BusyResourceError("a TlsStream uses this connection: use that, or unwrap() it first")


_FORWARDED = {
    "fileno",
    "getpeername",
    "getsockname",
    "getsockopt",
    "setsockopt",
    "get_inheritable",
    "set_inheritable",
}

for _name in vars(trio.socket.SocketType).keys() - vars(StandIn).keys():
    if _name in _FORWARDED:
        setattr(StandIn, _name, _forward(_name))
    elif not _name.startswith("_"):
        setattr(StandIn, _name, _refuse)


@cache
def _socket_class() -> type[trio.socket.SocketType]:
    """The class of trio's own sockets. It has no public name."""
    with trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX)) as sock:
        return type(sock)


def _has_no_descriptor(sock: trio.socket.SocketType) -> bool:
    """True if it is trio's own, and closed; others need not have one."""
    return type(sock) is _socket_class() and sock.fileno() < 0


def check_unused(stream: trio.SocketStream) -> None:
    """
    Raises:
      ValueError: another TlsStream uses it.
      trio.ClosedResourceError: it is closed, or its ``send_eof`` was called.
    """
    sock = stream.socket
    if isinstance(sock, StandIn) and not sock.closing.started:
        raise ValueError("this stream is below another TlsStream already")
    if isinstance(sock, StandIn) or sock.did_shutdown_SHUT_WR or _has_no_descriptor(sock):
        raise trio.ClosedResourceError("this stream was closed")


def can_be_taken(stream: trio.SocketStream) -> bool:
    """True if its connection can be put on the ring (rule 4)."""
    return type(stream.socket) is _socket_class()


def take(stream: trio.SocketStream) -> tuple[RingTransport, Closing]:
    """Take the connection out of the stream, and leave a stand-in there."""
    trio.lowlevel.notify_closing(stream.socket)
    taken = SocketStream(stream.socket)
    transport, closing = taken._release_to_tls()
    stream.socket = StandIn(taken, closing)
    return transport, closing


def give_back(stream: trio.SocketStream, transport: RingTransport, closing: Closing) -> None:
    """The connection is no longer TLS: it is trio's again."""
    sock = transport.hand_back()
    closing.detach()
    stream.socket = trio.socket.from_stdlib_socket(sock)
