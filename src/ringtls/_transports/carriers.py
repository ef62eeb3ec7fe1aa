"""What carries the bytes of a trio stream: the connections below it, as far as they are known.

a trio.SSLStream        what carries the stream below
a trio.StapledStream    what carries either half
a trio.SocketStream     its socket
a stream of ringtls     its transport
any other               nothing that is known
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .._engine.descriptors import is_gone, reset_connection, unacknowledged
from .._outcome import CloseOutcome
from .base import BaseTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Carrier", "carrier_of", "streams_below"]


class Carrier(Protocol):
    """A connection."""

    def unacknowledged(self) -> int:
        """Bytes that it was given and that the peer's kernel has not taken in."""

    def is_gone(self) -> bool:
        """True if it was reset, or is closed."""

    def reset(self) -> None:
        """End it so that the peer can't take that for an end."""


class _Socket:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock

    def unacknowledged(self) -> int:
        return unacknowledged(self._socket.fileno())

    def is_gone(self) -> bool:
        return is_gone(self._socket.fileno())

    def reset(self) -> None:
        """To close it would not do that if another process, or a duplicate, has it too."""
        with suppress(OSError):  # it is not connected any more
            reset_connection(self._socket.fileno())


class _Ours:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._transport: BaseTransport = stream._transport

    def unacknowledged(self) -> int:
        self._transport.has_unsent(1)  # which updates what is unsent
        unsent = self._transport.unsent + self._transport.unacknowledged()
        return unsent or self._has_failed  # what was destroyed never will be

    def is_gone(self) -> bool:
        return self._has_failed or self._transport.is_gone()

    @property
    def _has_failed(self) -> bool:
        return self._stream._closing.outcome not in (None, CloseOutcome.CLEAN)

    def reset(self) -> None:
        self._stream.close_unclean()


def streams_below(stream: object) -> Iterator[object]:
    """A stream, or those that it is made of."""
    if isinstance(stream, trio.SSLStream):
        yield from streams_below(stream.transport_stream)
    elif isinstance(stream, trio.StapledStream):
        yield from streams_below(stream.send_stream)
        yield from streams_below(stream.receive_stream)
    else:
        yield stream


def carrier_of(stream: object) -> Carrier | None:
    if isinstance(stream, trio.SocketStream):
        return _Socket(stream.socket)
    if isinstance(getattr(stream, "_transport", None), BaseTransport):
        return _Ours(stream)
    return None
