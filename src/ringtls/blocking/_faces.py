"""Blocking streams by their asynchronous names: what ``call`` gives to asynchronous code.

No await in here suspends. Each method is the blocking one, which has waited for all there is to
wait for when it returns; where the blocking stream has none, it is the asynchronous one below that,
driven by the thread as all are. So timeouts, KeyboardInterrupt and the close contract are those of
the blocking stream. What is left out is what hands out an Operation, which needs a run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from .._drivers.blocking import complete
from .._streams.tls_info import TlsInfo
from ._streams import SocketStream, TlsStream, open_tls_over_tcp_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from typing_extensions import Buffer

__all__ = ["face_of", "without_face"]


class _Face(trio.abc.HalfCloseableStream):
    """What both streams have in common."""

    below: SocketStream | TlsStream

    @property
    def timeout(self) -> float | None:
        return self.below.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self.below.timeout = seconds

    @property
    def input_pending(self) -> bool:
        return self.below.input_pending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        with self.below._call():
            complete(self.below._stream.wait_send_all_might_not_block())

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return self.below.receive_some(max_bytes)

    async def receive_into(self, buffer: Buffer, nbytes: int | None = None) -> int:
        return self.below.receive_into(buffer, nbytes)

    async def send_eof(self) -> None:
        self.below.send_eof()

    async def aclose(self) -> None:
        self.below.close()

    def close_unclean(self) -> None:
        self.below.close_unclean()

    async def __aexit__(self, *exc_info: Any) -> None:
        self.below.__exit__(*exc_info)


class _SocketFace(_Face):
    below: SocketStream

    def __init__(self, below: SocketStream) -> None:
        self.below = below

    @property
    def socket(self) -> socket.socket:
        return self.below.socket

    def setsockopt(self, *arguments: Any) -> None:
        self.below._stream.setsockopt(*arguments)

    def getsockopt(self, *arguments: int) -> int | bytes:
        return self.below._stream.getsockopt(*arguments)

    def reset_if_killed(self) -> None:
        self.below._stream.reset_if_killed()

    async def peek(self, max_bytes: int) -> bytes:
        return self.below.peek(max_bytes)


class _TlsFace(TlsInfo, _Face):
    below: TlsStream

    def __init__(self, below: TlsStream) -> None:
        self.below = below
        self._session, self._closing = below._session, below._closing

    async def do_handshake(self) -> None:
        self.below.do_handshake()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        with self.below._call():
            return self.below._stream.send_nowait(data)

    async def wait_sent(self) -> None:
        with self.below._call():
            complete(self.below._stream.wait_sent())

    async def wait_acknowledged(self) -> None:
        self.below.wait_acknowledged()

    async def unwrap(self) -> tuple[_SocketFace, bytes]:
        transport_stream, trailing = self.below.unwrap()
        return _SocketFace(transport_stream), trailing

    async def aclose(self, *, shutdown_timeout: float | None = None) -> None:
        self.below.close(shutdown_timeout=shutdown_timeout)

    @property
    def transport_stream(self) -> _SocketFace:
        return _SocketFace(self.below.transport_stream)


# What makes streams


def _socket_stream(sock: socket.socket) -> _SocketFace:
    return _SocketFace(SocketStream(sock))


def _tls_stream(transport_stream: _SocketFace, *arguments: Any, **options: Any) -> _TlsFace:
    return _TlsFace(TlsStream(without_face(transport_stream), *arguments, **options))


async def _open_tls_over_tcp_stream(*arguments: Any, **options: Any) -> _TlsFace:
    return _TlsFace(open_tls_over_tcp_stream(*arguments, **options))


_MAKERS: dict[object, Callable[..., Any]] = {
    SocketStream: _socket_stream,
    TlsStream: _tls_stream,
    open_tls_over_tcp_stream: _open_tls_over_tcp_stream,
}


def face_of(value: Any) -> Any:
    """What stands for a value in asynchronous code: of a blocking stream, or what makes one, its
    face; else the value."""
    if isinstance(value, SocketStream):
        return _SocketFace(value)
    if isinstance(value, TlsStream):
        return _TlsFace(value)
    if isinstance(value, partial):
        return partial(face_of(value.func), *value.args, **value.keywords)
    return next((face for maker, face in _MAKERS.items() if maker is value), value)


def without_face(value: Any) -> Any:
    """The blocking stream that a face is of; else the value."""
    return value.below if isinstance(value, _Face) else value
