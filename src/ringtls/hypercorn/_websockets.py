"""hypercorn's WebSockets, and what they leave open at an end.

Rules:

1. An application hears the code and the reason of its client's Close (RFC 6455, section 7.1.5), and
   1006 only where there was none. hypercorn says 1006 for all.
2. A client that breaks the protocol hears Close before the end (RFC 6455, section 7.1.7): 1002.
3. So does one whose WebSocket is open when the connection ends: 1001, going away.
4. A client that sends before its WebSocket is accepted is refused, and the application hears that
   it is over: before the answer is sent, amid which it might accept. hypercorn lets both wait, for
   ever. Where the application's own refusal has begun, that is the answer.
5. An application that accepts with what can't be sent (a subprotocol that its client has not named,
   a header that is none) has not accepted. By hypercorn its client is sent Close, with no answer
   before it, which in HTTP/2 breaks the whole connection.
6. Nothing pings a WebSocket that is over. hypercorn sleeps until the next ping, and meanwhile the
   connection does not end.
7. A WebSocket is over when a message exceeds the limit. hypercorn says Close (1009) and leaves it
   open: each further piece of the message is kept, and its application waits for the client.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.protocol.events import Body, Data, StreamClosed
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.events import Event as WebSocketEvent
from wsproto.frame_protocol import CloseReason

if TYPE_CHECKING:
    from hypercorn.protocol.events import Event

__all__ = ["PROTOCOL_ERROR", "adopted", "close"]

PROTOCOL_ERROR = CloseReason.PROTOCOL_ERROR


class WebSocket(WSStream):
    """hypercorn's, by rules 1 and 4 to 7."""

    _application_refuses = False
    _pings: trio.CancelScope | None = None

    async def handle(self, event: Event) -> None:
        if not isinstance(event, Body | Data) or self.closed or self.handshake.accepted:
            await super().handle(event)
            if self.buffer.length > self.buffer.max_length and not self.closed:  # rule 7
                await self.send(StreamClosed(self.stream_id))
            if self.closed:
                self._stop_pings()
            return
        if self.state is ASGIWebsocketState.HANDSHAKE and not self._application_refuses:
            assert self.app_put is not None
            self.closed = True
            await self.app_put(
                {"type": "websocket.disconnect", "code": int(CloseReason.ABNORMAL_CLOSURE)}
            )
            await self._send_error_response(http.HTTPStatus.BAD_REQUEST)
            await self.send(StreamClosed(self.stream_id))

    async def app_send(self, message: Any) -> None:
        if message is None or message["type"] == "websocket.http.response.body":
            self._application_refuses = True
        await super().app_send(message)

    async def _accept(self, message: Any) -> None:
        try:
            await super()._accept(message)
        except Exception:  # rule 5
            self.state = ASGIWebsocketState.HANDSHAKE
            self.handshake.accepted = False
            raise

    async def _send_pings(self) -> None:
        with trio.CancelScope() as self._pings:
            await super()._send_pings()

    def _stop_pings(self) -> None:
        if self._pings is not None:
            self._pings.cancel()

    async def _send_wsproto_event(self, event: WebSocketEvent) -> None:
        if isinstance(event, CloseConnection):
            self._stop_pings()
        if (
            isinstance(event, CloseConnection)
            and self.connection.state is ConnectionState.REMOTE_CLOSING
            and self.app_put is not None
        ):
            # It answers the client's, and has the same in it.
            await self.app_put(
                {
                    "type": "websocket.disconnect",
                    "code": int(event.code),
                    "reason": event.reason or "",
                }
            )
        await super()._send_wsproto_event(event)


def adopted(stream: Any) -> Any:
    """A stream that hypercorn has made: if it is a WebSocket, as one of ours. One for HTTP has no
    application either at first, and says so."""
    if type(stream) is WSStream:
        stream.__class__ = WebSocket
    elif isinstance(stream, HTTPStream):
        stream.app_put = None  # type: ignore[assignment]
    return stream


def close(stream: Any, code: CloseReason = CloseReason.GOING_AWAY) -> bytes:
    """Close, if this is a WebSocket that is open (rules 2 and 3)."""
    if not isinstance(stream, WSStream) or not stream.handshake.accepted:
        return b""
    if stream.connection.state is not ConnectionState.OPEN:
        return b""
    return stream.connection.send(CloseConnection(code=code))
