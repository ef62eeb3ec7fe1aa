"""The protocol that a connection speaks, and hypercorn's HTTP/2 with what it leaves open at an end.

Rules:

1. A connection says farewell: GOAWAY for HTTP/2 (RFC 9113, section 6.8), so that its client knows
   what to send again; before it, Close for each WebSocket that is open (RFC 6455, section 7.4.1:
   1001, going away).
2. In HTTP/2, a WebSocket that is closed ends its stream (RFC 8441, section 5), and an answer that
   its application has left unfinished resets it: else a client would wait for the rest. hypercorn
   leaves both open.
3. In HTTP/2, data may come for a stream that is over here: the rest of a request that was answered
   early, the end of a WebSocket. It is thrown away, and the other streams go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.exceptions
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WSStream
from wsproto.connection import ConnectionState as WebSocketState
from wsproto.events import CloseConnection
from wsproto.frame_protocol import CloseReason

from ._http1 import Http1

if TYPE_CHECKING:
    from hypercorn.protocol.events import Event

__all__ = ["Protocols"]


class Protocols(ProtocolWrapper):
    """The one that a connection speaks: hypercorn's choice, each of our kind."""

    def __init__(self, read_ahead: Callable[[], Awaitable[None]], *arguments: Any) -> None:
        self._read_ahead = read_ahead
        super().__init__(*arguments)

    @property
    def protocol(self) -> Http1 | _Http2:
        return self._protocol

    @protocol.setter
    def protocol(self, chosen: H11Protocol | H2Protocol) -> None:
        make = partial(Http1, self._read_ahead) if isinstance(chosen, H11Protocol) else _Http2
        self._protocol: Http1 | _Http2 = make(
            chosen.app,
            chosen.config,
            chosen.context,
            chosen.task_group,
            chosen.connection_state,
            chosen.ssl,
            chosen.client,
            chosen.server,
            chosen.send,
        )

    @property
    def is_cut_short(self) -> bool:
        """True if the end of the connection would make a part of an answer look whole."""
        return isinstance(self._protocol, Http1) and self._protocol.is_cut_short

    def last_words(self) -> bytes:
        """What the client is to hear at the end (rule 1)."""
        if isinstance(self._protocol, _Http2):
            return self._protocol.last_words()
        return _close(self._protocol.stream)


class _Http2(H2Protocol):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = _Streams()

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, StreamClosed) and not self.closed:
            await self._end(event.stream_id)
        await super().stream_send(event)

    async def _end(self, stream_id: int) -> None:
        """Rule 2."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete:
            return
        self.priority.unblock(stream_id)
        if isinstance(self.streams[stream_id], WSStream):
            buffer.set_complete()
        else:
            with suppress(h2.exceptions.ProtocolError):
                self.connection.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
            await buffer.close()
        await self.has_data.set()
        await self._flush()

    def last_words(self) -> bytes:
        connection = self.connection
        if connection.state_machine.state is not ConnectionState.CLOSED:
            for stream_id, stream in self.streams.items():
                buffer = self.stream_buffers.get(stream_id)
                if buffer is None or buffer.buffer:
                    continue  # it has ended, or this would land inside of what is to be sent
                close = _close(stream)
                if close and len(close) <= connection.local_flow_control_window(stream_id):
                    connection.send_data(stream_id, close, end_stream=True)
            connection.close_connection()
        words: bytes = connection.data_to_send()
        return words


class _Streams(dict[int, Any]):
    """Those that are open; any other is over (rule 3)."""

    def __missing__(self, stream_id: int) -> _Over:
        return _Over()


class _Over:
    async def handle(self, event: Event) -> None:
        pass


def _close(stream: Any) -> bytes:
    """Close, if this is a WebSocket that is open."""
    if not isinstance(stream, WSStream) or not stream.handshake.accepted:
        return b""
    if stream.connection.state is not WebSocketState.OPEN:
        return b""
    return stream.connection.send(CloseConnection(code=CloseReason.GOING_AWAY))
