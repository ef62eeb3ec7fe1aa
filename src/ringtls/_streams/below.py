"""What carries the bytes of a stream that TLS, or a relay, is put upon.

the stream            its transport
SocketStream          the one that it has, on the ring
trio.SocketStream     its connection is put on the ring (trio_socket.py), if there is one
TlsStream             StreamTransport, which leaves the end to that stream: TLS in TLS
any other             StreamTransport
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .._clock import now
from .._drivers.trio import TrioDriver
from .._errors import RingUnavailableError
from .._outcome import CloseOutcome
from .._transports.carriers import streams_below
from .._transports.ring import RingTransport
from .._transports.stream import StreamTransport
from . import trio_socket
from .closing import Closing
from .socket import SocketStream
from .tls_info import TlsInfo

if TYPE_CHECKING:
    from .._interfaces import Transport

__all__ = ["give_back", "take_over"]


def take_over(stream: trio.abc.Stream) -> tuple[Transport, Closing]:
    """Take the connection of a stream: what carries its bytes, and its end."""
    if isinstance(stream, SocketStream):
        return stream._release_to_tls()
    if isinstance(stream, TlsInfo):
        stream._check_unused()
    driver = TrioDriver.current()
    if isinstance(stream, trio.SocketStream):
        trio_socket.check_unused(stream)
        if _has_ring(driver) and trio_socket.can_be_taken(stream):
            return trio_socket.take(stream)
    kind = _TransportOverTls if isinstance(stream, TlsInfo) else StreamTransport
    transport = kind(driver, stream)
    closing = Closing(transport)
    closing.own(
        each._closing for each in streams_below(stream) if isinstance(each, (SocketStream, TlsInfo))
    )
    return transport, closing


def give_back(stream: trio.abc.Stream, transport: Transport, closing: Closing) -> None:
    """The stream has its connection again, and sees to its end."""
    if isinstance(stream, SocketStream):
        stream._reclaim()
    elif isinstance(stream, trio.SocketStream) and isinstance(transport, RingTransport):
        trio_socket.give_back(stream, transport, closing)
    else:
        closing.detach()


def _has_ring(driver: TrioDriver) -> bool:
    try:
        driver.ring  # noqa: B018
    except RingUnavailableError:
        return False
    return True


class _TransportOverTls(StreamTransport):
    """TLS in TLS: the outer connection bounds its own end, lingers by itself, and tells how it
    ended."""

    _stream: Any  # a TlsStream: tls.py imports this module

    async def _finish(self, end: float, *, lingers: bool) -> None:
        left = max(0.0, end - now())
        await self._stream.aclose(shutdown_timeout=left)
        outcome = self._stream.close_outcome
        if outcome is CloseOutcome.TIMED_OUT:
            raise trio.TooSlowError
        if outcome is not CloseOutcome.CLEAN:
            raise trio.BrokenResourceError(f"the outer TLS connection ended: {outcome}")
